"""Section ``[compression]``; free of heavy imports."""

from typing import Literal, Self

from pydantic import Field, model_validator

from medfusion.options import Options, asked

Level = Literal["none", "bfloat16", "int8", "int4", "topk"]


class CodecOptions(Options):
    """How updates travel in one direction (`medfusion.transport.compress`).

    Attributes
    ----------
    level
        ``none`` sends the model as it is.
    fraction
        Share of the entries that ``topk`` sends.
    byte_budget
        Most bytes of an update in a round; the finest level that keeps to it is chosen, from the
        number of parameters alone. In place of ``level``.
    error_feedback
        Whether the sender adds what one round lost to its next update.
    """

    level: Level = "none"
    fraction: float = Field(default=0.01, gt=0, le=1)
    byte_budget: int | None = Field(default=None, ge=64)
    error_feedback: bool = True

    @model_validator(mode="after")
    def _one_of_level_and_budget(self) -> Self:
        if self.byte_budget is not None and self.level != "none":
            raise ValueError(
                f"byte_budget chooses the level: expected one of byte_budget and level = "
                f"{self.level!r}"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_idle(self) -> Self:
        if asked(self, "fraction") and self.level != "topk":
            raise ValueError(
                f"fraction = {self.fraction} is what level 'topk' sends: expected level = 'topk', "
                "or no fraction"
            )
        if not self.error_feedback and self.off:
            raise ValueError(
                "error_feedback = false: level 'none' loses nothing that could be fed back; "
                "expected another level, a byte_budget, or no error_feedback"
            )
        return self

    @property
    def off(self) -> bool:
        """Whether updates travel as they are."""
        return self.level == "none" and self.byte_budget is None


class CompressionOptions(CodecOptions):
    """How a site's update travels to the coordinator, and ``down`` how the model goes out.

    With ``down`` sites train from a model of which each of them was told the same, and which is
    also what is evaluated and delivered (`server.downlink`).
    """

    down: CodecOptions = CodecOptions()
