"""Comparison of training regimes and settings on the same test patients.

A comparison has *arms*: a regime under certain settings.

``federated``
    The federation as configured: one model for all sites.
``pooled``
    One node holds the studies of all sites: what sharing the data would give.
``local``
    Each site trains alone, and its model scores its own test studies.

Each study is scored once, but not all by one model: each fold has its own, and in the ``local``
arm each site. Scores of different models are not on one scale. A fold rich in positives is
scored by a model that saw few of them, so that ranking folds together drags weak models below
0.5 (sources: `medfusion.evaluation.intervals.patient_bootstrap`). So, for each seed, and then
averaged over seeds:

``auroc_macro``, ``auprc_macro``, ``auroc``, ``auprc``
    rank the studies of a fold against each other; without folds, all test studies.
``auroc_within_sites``
    ranks those of a fold and site. Where a label is more common at some sites, the figures above
    reward a model for telling the sites apart, which each model of the ``local`` arm does by its
    level alone. This one counts nothing between sites: by it, compare ``local`` with the others.
``per_site``, ``worst_site``
    rank the studies of a fold at one site; the worst site is the one with the least.
``cross_site``
    the headline figure, in the same way, of each model at each site: in the ``local`` arm of each
    site's own model (the row) on the test studies of every site (the column).

Intervals are percentiles over resamples of patients, each with all their studies, without
stratification. All arms share the resamples, so that differences are paired. They tell what
other patients would have changed, given these trained models; not what other seeds would.
"""
