"""Per-sample gradients by book-keeping: one backward pass, of activations alone [1]_.

Autograd never forms the gradient of a weight. Each layer is handed its input and the gradient of
its output as that arrives, and forms the gradient of every sample from them by a rule of its own.

References
----------
.. [1] Bu et al., "Differentially private optimization on large model at small cost", ICML 2023,
   arXiv 2210.00038. We keep the per-sample gradients between norm and sum, as clipping by norms of
   gradients that are then computed a second time lets rounding exceed the bound.
"""
