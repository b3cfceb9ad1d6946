"""Comparison of training regimes and settings on the same test patients.

A comparison has *arms*: a regime under certain settings.

``federated``
    The federation as configured: one model for all sites.
``pooled``
    One node holds the studies of all sites: what sharing the data would give.
``local``
    Each site trains alone, and its model scores its own test studies.

An arm's AUROC ranks its scores of all test studies together, for each seed, and is averaged
over the seeds. In the ``local`` arm these scores come from different models, so a difference
in level between two sites' models counts like a difference between patients: where prevalence
differs, that may raise the figure or lower it, whatever each model can tell within its site.
The ``per_site`` figures are free of this. With folds, every arm ranks the scores of one model
for each fold together.

Intervals are percentiles over resamples of patients, each with all their studies, without
stratification. All arms share the resamples, so that differences are paired. They tell what
other patients would have changed, given these trained models; not what other seeds would.
"""
