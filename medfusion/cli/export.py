"""``medfusion export``: a model as ONNX, or a card that says what it is."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    model_dir: Annotated[
        Path, typer.Argument(help="Folder with model.safetensors and model.json.")
    ],
    form: Annotated[
        Literal["onnx", "card"], typer.Option("--format", help="What to write.")
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; by default model.onnx or MODEL_CARD.md in MODEL_DIR."),
    ] = None,
) -> None:
    """Write a model as ONNX (and onnx.json beside it), or its card (MODEL_CARD.md)."""
    if form == "onnx":
        _onnx(model_dir, out or model_dir / "model.onnx")
    else:
        _card(model_dir, out or model_dir / "MODEL_CARD.md")


def _onnx(model_dir: Path, out: Path) -> None:
    from rich.console import Console

    from medfusion.errors import UsageError

    if out.suffix != ".onnx":
        raise UsageError(f"--out {out}: expected a file ending in .onnx")
    from medfusion.export.onnx_files import export_onnx
    from medfusion.export.onnx_network import TOLERANCE, require_packages

    require_packages()
    with Console(stderr=True).status("writing ONNX and comparing it with PyTorch"):
        written = export_onnx(model_dir, out)
    typer.echo(f"wrote {out} and {written.description}")
    typer.echo(
        f"logits differ from PyTorch's by at most {written.distance:.2g} (allowed: {TOLERANCE:g})"
    )


def _card(model_dir: Path, out: Path) -> None:
    from medfusion.export.card import write_card

    write_card(model_dir, out)
    typer.echo(f"wrote {out}")
