"""``medfusion cohort``: make a synthetic cohort, or import a public data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from medfusion.data.cohorts.writing import SiteSummary

app = typer.Typer(
    no_args_is_help=True, help="Make cohorts of site folders: synthetic, or from public data."
)

Out = Annotated[Path, typer.Argument(help="New or empty folder for the cohort.")]


@app.command()
def synth(
    out: Out,
    sites: Annotated[int, typer.Option(help="Number of hospitals.")] = 4,
    patients: Annotated[int, typer.Option(help="Patients of each hospital.")] = 400,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    image_size: Annotated[int, typer.Option(help="Pixels of an image's side, 32 to 64.")] = 32,
) -> None:
    """Write hospitals that differ, with a planted signal and its truth in oracle.csv."""
    from medfusion.data.cohorts.synthetic import write_cohort

    summaries = write_cohort(out, sites=sites, patients=patients, seed=seed, image_size=image_size)
    _show(out, summaries)


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="Name of the data set, such as covid-chestxray.")],
    src: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    out: Out,
    sites: Annotated[
        int | None, typer.Option(help="Artificial sites for sets without their own.  [default: 4]")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Small: sites differ much in labels and size.  [default: 0.5]"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of dealing patients to artificial sites.  [default: 0]")
    ] = None,
) -> None:
    """Turn a copy of a public data set into site folders.

    Sets without natural sites (hospitals, regions) are dealt out by patient, with labels skewed
    by a Dirichlet distribution.
    """
    from medfusion.data.cohorts.partition import Partition
    from medfusion.data.cohorts.registry import importer

    chosen = {"sites": sites, "alpha": alpha, "seed": seed}
    given: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    partition = Partition(**given) if given else None
    imported = importer(name).run(src, out, partition)
    _show(out, imported.sites, imported.notices)


def _show(out: Path, summaries: "Sequence[SiteSummary]", notices: Sequence[str] = ()) -> None:
    """Print a line of counts for each site, the notices, and what to do next."""
    from rich.console import Console
    from rich.table import Table

    table = Table("site", "patients", "training", "studies", "images", "notes")
    for site in summaries:
        counts = (site.patients, site.patients_public, site.studies, site.images, site.notes)
        table.add_row(site.name, *(f"{count:,}" for count in counts))
    Console().print(table)
    for notice in notices:
        typer.echo(notice)
    typer.echo(f"next: medfusion simulate {out / 'config.toml'}")
