"""``medfusion predict``: what a model says of a site's studies, labelled or not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from medfusion.explain.studies import ToExplain


def predict(
    model_dir: Annotated[
        Path, typer.Argument(help="Folder with model.safetensors and model.json.")
    ],
    site: Annotated[Path, typer.Argument(help="Site folder; it needs no labels.")],
    out: Annotated[Path, typer.Option(help="CSV file to write, a row for each study (or box).")],
    explain: Annotated[
        Path | None,
        typer.Option(help="Folder for explanations.html: why the model says so. Stays here."),
    ] = None,
    cases: Annotated[
        int | None, typer.Option(min=0, help="With --explain: studies shown one by one (8).")
    ] = None,
) -> None:
    """Apply a model to all studies of a site; the table stays at the site."""
    from rich.console import Console

    from client.node.state import NodeState
    from medfusion.atomic_files import make_folder, write_atomically
    from medfusion.models.registry import modalities_of
    from medfusion.models.saved import load_model
    from medfusion.prediction_table import prediction_table
    from medfusion.scoring import apply_model, drift_warnings, load_to_predict, study_tensors

    if cases is not None and explain is None:
        raise typer.BadParameter("--cases goes with --explain DIR")
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
    if explain is not None:
        from medfusion.explain.studies import ToExplain

        page = _explain(ToExplain(saved, data, tensors, outputs, table), explain, cases, console)
        typer.echo(f"explanations, which hold patients' data: {page}")


def _explain(what: "ToExplain", folder: Path, cases: int | None, console: "Console") -> Path:
    """Write the page of explanations and show how far it is."""
    from rich.progress import Progress

    from medfusion.explain.run import CASES, explain_site

    with Progress(console=console) as progress:
        bar = progress.add_task("explaining", total=None)
        return explain_site(
            what,
            folder,
            cases=CASES if cases is None else cases,
            advance=lambda done, total: progress.update(bar, completed=done, total=total),
        )
