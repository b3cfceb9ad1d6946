"""A digest of everything that a site's releases read."""

import hashlib

import numpy as np

from medfusion.data.site_data import SiteData


def data_sha256(data: SiteData, images: list[str]) -> str:
    """Hash a site's studies, their split and their images' content."""
    studies = data.studies
    arrays = (studies.study_ids, studies.patient_ids, studies.features, studies.labels, data.split)
    parts = [
        *(np.ascontiguousarray(array).tobytes() for array in arrays),
        *((note or "").encode() for note in studies.notes),
        *(image.encode() for image in images),
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
