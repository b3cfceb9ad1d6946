"""The Node: owns a hospital's data, policy and trainer."""
