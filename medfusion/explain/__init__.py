"""Why a model says what it says: of single studies, of a cohort, and of the model itself."""
