"""What a hospital engineer asks when a site does not work: checks that change nothing."""
