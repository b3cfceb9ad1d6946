"""The strategies that Flower lacks, each in one file with what a site does for it."""
