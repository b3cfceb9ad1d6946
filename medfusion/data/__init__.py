"""Task and site contracts: from a hospital's files to validated studies and tensors."""
