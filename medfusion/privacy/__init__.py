"""Patient-level differential privacy: plan, sampler, DP-SGD, noised histograms."""
