"""The coordinator as it is operated: Flower's programs, the nodes that may join, the runs."""
