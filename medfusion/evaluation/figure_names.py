"""What people read in the place of a figure's key in JSON, in the order of the columns."""

OF_RANKING = {
    "auroc_macro": "AUROC",
    "auroc_within_sites": "within sites",
    "auprc_macro": "AUPRC",
}
OF_OTHERS = {
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "F1",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R2",
    "ap50": "AP@.5",
    "ap": "AP",
    "ar": "AR",
    "ap50_iobb": "AP@IoBB .5",
    "ar50_iobb": "AR@IoBB .5",
}
FIGURE_NAMES = OF_RANKING | OF_OTHERS
