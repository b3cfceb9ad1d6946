"""What coordinator and hospitals hold of one another: kits, keys and signatures."""
