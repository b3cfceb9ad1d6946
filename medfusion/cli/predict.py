"""``medfusion predict``: what a model says of a site's studies, labelled or not."""

from pathlib import Path
from typing import Annotated

import typer


def predict(
    model_dir: Annotated[
        Path, typer.Argument(help="Folder with model.safetensors and model.json.")
    ],
    site: Annotated[Path, typer.Argument(help="Site folder; it needs no labels.")],
    out: Annotated[Path, typer.Option(help="CSV file to write, a row for each study (or box).")],
) -> None:
    """Apply a model to all studies of a site; the table stays at the site."""
    from rich.console import Console

    from client.node.state import NodeState
    from medfusion.atomic_files import make_folder, write_atomically
    from medfusion.models.registry import modalities_of
    from medfusion.models.saved import load_model
    from medfusion.prediction_table import prediction_table
    from medfusion.scoring import apply_model, drift_warnings, load_to_predict, study_tensors

    console = Console(stderr=True, markup=False, highlight=False)
    saved = load_model(model_dir)
    data, findings = load_to_predict(saved, site)
    for finding in findings:
        console.print(f"warning: {finding.where}: {finding.message}", soft_wrap=True)
    with console.status(f"{len(data.studies)} studies"):
        cache = NodeState(data.state).cache
        tensors = study_tensors(saved, data, data.studies, cache=cache)
        outputs = apply_model(saved, data, tensors)
    for warning in drift_warnings(saved, data.studies, outputs):
        console.print(f"warning: {warning}", soft_wrap=True)
    table = prediction_table(
        data.task,
        data.studies,
        outputs,
        modalities=modalities_of(saved.options, data.task),
        calibration=saved.calibration,
    )
    make_folder(out.parent)
    write_atomically(out, table.to_csv(), durable=False)
    typer.echo(f"{len(data.studies)} studies of site {data.name}: {out}")
