"""One run at one site: selection, training and evaluation on the site's own studies."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from flwr.app import MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from client.node.compressing import compressed
from client.node.exact_releases import ExactReleases
from client.node.held_model import HeldModel
from client.node.local_steps import LocalSteps
from client.node.measuring import Measuring
from client.node.releases import PaidReleases
from client.node.selecting import Selecting, one_per_patient
from client.node.strategy_memory import StrategyMemory
from medfusion.code_digest import code_sha256
from medfusion.data.images import ImageCache
from medfusion.data.site_data import SiteData
from medfusion.data.split import TRAIN
from medfusion.data.tensors import StudyTensors
from medfusion.data.thresholds import Selection
from medfusion.digests import sha256_of
from medfusion.errors import DataError, FederationError
from medfusion.models.contract import frozen_sha256, trainable_state
from medfusion.models.local_parts import local_parts
from medfusion.models.registry import (
    build_model,
    build_tokenizer,
    fixed_image_features,
    frozen_note_encoder,
    modalities_of,
)
from medfusion.objectives.registry import objective_of
from medfusion.prediction import predict_logits
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.ledger import Ledger
from medfusion.privacy.plan_costs import ReleaseKind
from medfusion.privacy.run_plan import run_plan
from medfusion.randomness import stream
from medfusion.training.device import choose_device
from medfusion.training.loop import FitResult, fit
from medfusion.transport.arrays import check_matches, from_record, state_sha256, to_record
from medfusion.transport.requests import (
    ARRAYS,
    LOSS_KEY,
    METRICS,
    REPLY,
    WEIGHT_KEY,
    Received,
    RunSettings,
    reply_with,
)


class Trainer:
    """Keeps model and tensors of one run warm; every random draw comes from a named stream.

    Parameters
    ----------
    kept
        Folder of what the run lets the site keep between rounds.
    exact
        What counts the releases of a run without privacy; None: nothing does.
    """

    def __init__(
        self,
        data: SiteData,
        settings: RunSettings,
        cache: Path,
        secret: bytes,
        ledger: Ledger,
        *,
        kept: Path,
        exact: ExactReleases | None,
    ) -> None:
        self.settings = settings
        self._memory = StrategyMemory(kept / "strategy")
        self._lost = StrategyMemory(kept / "lost")
        self._own = StrategyMemory(kept / "own")
        self._data = data
        self._secret = secret
        self._modalities = modalities_of(settings.model, data.task)
        self._objective = objective_of(data.task, settings.training.loss)
        self._device = choose_device(data.config.compute.device)
        model = build_model(settings.model, data.task, seed=settings.seed, weights_follow=True)
        self._model = model.to(self._device)
        self._kept = local_parts(model, settings.personalisation.local)
        # Before the first round a site has what everybody starts from.
        start = trainable_state(model)
        self._first_own = {n: start[n].detach().cpu().clone() for n in sorted(self._kept)}
        down = settings.compression.down
        shared = {n: value for n, value in start.items() if n not in self._kept}
        self._held = None if down.off else HeldModel(shared, down)
        self._frozen = frozen_sha256(self._model)
        self._tokenizer = build_tokenizer(settings.model, data.task)
        image = data.task.image
        self._folder = cache
        self._cache = ImageCache(cache, image) if image and "image" in self._modalities else None
        self._plan = run_plan(
            settings,
            data.task,
            patients_public=data.patients_public,
            delta=data.config.policy.delta,
        )
        self._train_studies = data.part(TRAIN)
        images = self._cache.digests(data.studies.images) if self._cache else []
        content = (*data.studies.content(images), data.split.tobytes())
        self._data_sha256 = sha256_of(content)
        self._selecting = Selecting(
            data,
            settings,
            self._plan,
            keystream=partial(Keystream, secret, settings.run_id, "selection", self._digest()),
            release=partial(self._release, "select", 0, self._data_sha256),
        )
        self._measuring = Measuring(
            data,
            settings,
            self._plan,
            outputs=self._outputs,
            min_patients=data.config.policy.min_patients if self._plan is None and exact else 0,
        )
        self._tensors: dict[int, StudyTensors] = {}
        self._tensors_read: Selection | None = None  # what they were made under
        # A plan's releases are as noisy about nobody; a refusal would tell that there is nobody.
        if self._plan is None and not len(self._train_studies):
            raise DataError(f"site {data.name!r}: no training patients after the split")
        # Last, so that a run which cannot start reserves nothing.
        self._counted = (
            PaidReleases(ledger, settings, self._plan, data.config.policy) if self._plan else exact
        )

    def select(self) -> RecordDict:
        """Return the (noised) histograms of the training patients, for federated selection."""
        if self.settings.selection.method != "federated":
            raise FederationError(
                f"selection.method = {self.settings.selection.method!r}: the histograms stay here"
            )
        return self._selecting.reply()

    def whole(self, request: Received) -> Received:
        """Return a request with all of its model; raises `FederationError` as `HeldModel` does."""
        return request if self._held is None else self._held.whole(request)

    def train(self, request: Received) -> RecordDict:
        """Train one round from the model in the request; return the new one."""
        self._check_round(request)
        settings = self.settings
        state, own = self._load(request)
        selection = self._selection(request)
        train = self._prepare(TRAIN, selection)
        steps = LocalSteps.of(
            request,
            settings,
            state,
            self._memory,
            patients_public=self._data.patients_public,
        )
        shifted = state_sha256(steps.shift) if steps.shift is not None else ""
        content = self._content(request, state, own, [train], shifted)
        full = self._release(
            "train",
            request.round,
            content,
            lambda: self._fit(request, train, selection, steps, content),
        )
        reply = self._without_own(full, request)
        names = (settings.run_id, "compression", request.round)
        sent, read = compressed(
            reply,
            request,
            settings,
            self._lost,
            lambda: stream(settings.seed, self._data.name, *names),
        )
        steps.remember(read)
        return sent

    def personal(self, request: Received) -> dict[str, Tensor] | None:
        """Return a model of this site's own, from the common one in the request.

        It never leaves the site, and nothing that leaves it is computed from it. None where the
        run asks for none, or there is nobody to train on.
        """
        settings, options = self.settings, self.settings.personalisation
        self._load(request)
        train = self._prepare(TRAIN, self._selection(request))
        if not options.steps or not len(self._train_studies):
            return None
        rate = options.learning_rate or settings.training.learning_rate
        names = (settings.run_id, "personal")
        self._fit_here(
            train,
            options=settings.training.model_copy(
                update={"learning_rate": rate, "schedule": "constant"}
            ),
            plan=None,
            steps=options.steps,
            public=stream(settings.seed, self._data.name, *names),
            private=Keystream(self._secret, *names),
            proximal_mu=options.pull,
            progress=1.0,
        )
        trained = trainable_state(self._model)
        return {name: tensor.detach().cpu().clone() for name, tensor in trained.items()}

    def _without_own(self, full: RecordDict, request: Received) -> RecordDict:
        """Return a reply without what stays here, which is kept: paid for as all of the reply."""
        if not self._kept:
            return full
        trained = from_record(full.array_records[ARRAYS])
        own = {name: trained.pop(name) for name in sorted(self._kept)}
        self._own.keep(request.round, own, counted=request.counted)
        return RecordDict({**full, ARRAYS: to_record(trained)})

    def own_parts(self, request: Received) -> dict[str, Tensor]:
        """Return what this site keeps of the model, as of the round that counted last.

        Raises
        ------
        FederationError
            If it is not in the state folder any more.
        """
        if not self._kept or not request.counted:
            return self._first_own
        return self._own.after(request.counted, self._first_own)

    def _fit(
        self,
        request: Received,
        train: StudyTensors,
        selection: Selection | None,
        local: LocalSteps,
        content: str,
    ) -> RecordDict:
        """Return what training from the loaded model leads to."""
        settings = self.settings
        names = (settings.run_id, "train", request.round)
        result = self._fit_here(
            train,
            options=settings.training,
            plan=self._plan,
            steps=settings.training.steps_per_round(self._data.patients_public),
            public=stream(settings.seed, self._data.name, *names),
            private=Keystream(self._secret, *names, content),
            proximal_mu=request.proximal_mu,
            gradient_shift=local.shift,
            progress=(request.round - 1) / settings.rounds,
            rounds=settings.rounds,
            own=self._kept,
            own_steps=settings.personalisation.own_steps,
        )
        metrics: dict[str, int | float | list[int] | list[float]] = {
            WEIGHT_KEY: self._data.patients_public
        }
        if settings.report_loss:
            metrics[LOSS_KEY] = result.loss or 0.0
        reply = RecordDict(
            {ARRAYS: to_record(trainable_state(self._model)), METRICS: MetricRecord(metrics)}
        )
        if settings.selection.method == "local":
            reply[REPLY] = reply_with({"selected": self._selecting.mask(selection)})[REPLY]
        return reply

    @property
    def _fit_here(self) -> "partial[FitResult]":
        """`fit` of this run's model on this machine; what remains is whose steps these are."""
        model, compute = self.settings.model, self._data.config.compute
        return partial(
            fit,
            self._model,
            objective=self._objective,
            device=self._device,
            physical_batch=compute.physical_batch,
            precision=compute.precision,
            modality_dropout=model.modality_dropout,
            auxiliary_heads=model.auxiliary_heads,
            masked_labels=model.masked_labels,
        )

    def evaluate(self, request: Received) -> RecordDict:
        """Return what the (noised) figures of the parts that are held out are computed from."""
        self._check_round(request)
        state, own = self._load(request)
        held_out = self._measuring.held_out(request.round)
        tensors = [self._prepare(part, self._selection(request)) for part in held_out.parts]
        content = self._content(request, state, own, tensors)
        names = (self.settings.run_id, "metrics", request.round, content)
        noise = partial(Keystream, self._secret, *names)
        return self._release(
            "evaluate",
            request.round,
            content,
            lambda: self._measuring.reply(held_out, tensors, noise),
        )

    def _outputs(self, part: StudyTensors) -> NDArray[np.float32]:
        batch = self._data.config.compute.physical_batch
        return predict_logits(self._model, part, self._device, batch=batch)

    def own_selection(self) -> Selection | None:
        """Return what this site selects by itself."""
        return self._selecting.own()

    def check_state(self, state: dict[str, Tensor]) -> None:
        """Refuse a model that is not this run's; raises `FederationError`."""
        trained = trainable_state(self._model)
        check_matches(state, {n: value for n, value in trained.items() if n not in self._kept})

    def _release(
        self, kind: ReleaseKind, number: int, content: str, compute: Callable[[], RecordDict]
    ) -> RecordDict:
        """Return a reply, which is counted first, and under privacy paid for and kept."""
        if self._counted is None:
            return compute()
        return self._counted.reply(kind, number, content, compute)

    def _prepare(self, part: int, selection: Selection | None) -> StudyTensors:
        """Return the studies of a part under a selection; held-out patients have one each."""
        if self._tensors_read != selection:
            self._tensors, self._tensors_read = {}, selection
        if part not in self._tensors:
            held_out = part != TRAIN
            studies = one_per_patient(self._data.part(part)) if held_out else self._train_studies
            self._tensors[part] = StudyTensors.build(
                studies,
                self._data.task,
                selection=selection,
                modalities=self._modalities,
                cache=self._cache,
                tokenizer=self._tokenizer,
                note_encoder=frozen_note_encoder(self._model),
                note_cache=self._folder,
                image_features=fixed_image_features(self._model),
            )
        return self._tensors[part]

    def _selection(self, request: Received) -> Selection | None:
        method, task = self.settings.selection.method, self._data.task
        if method == "federated" and request.request.selection is not None:
            return Selection.from_json(request.request.selection, task)
        return self._selecting.own() if method == "local" else None

    def _load(self, request: Received) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Bring the request's model into ours; return what was sent, and what the site keeps."""
        if request.arrays is None:
            raise FederationError("expected a request with a model")
        state = from_record(request.arrays)
        self.check_state(state)
        if request.request.frozen_sha256 not in (None, self._frozen):
            raise FederationError(
                "the frozen weights (text encoder, model.init) differ between this site and the "
                "coordinator: install the same files on all sides"
            )
        own = self.own_parts(request)
        self._model.load_state_dict(state | own, strict=False)
        return state, own

    def _check_round(self, request: Received) -> None:
        if not 1 <= request.round <= self.settings.rounds:
            raise FederationError(
                f"round {request.round}: the run has rounds 1 to {self.settings.rounds}"
            )

    def _content(
        self,
        request: Received,
        state: dict[str, Tensor],
        own: dict[str, Tensor],
        tensors: Sequence[StudyTensors],
        *more: str,
    ) -> str:
        """Hash everything that a release from a model depends on.

        Notes count as the model reads them, since tokenizer and encoder come from files of this
        machine, which may change between two requests.
        """
        return self._digest(
            state_sha256(state),
            self._frozen,
            *(part.notes_sha256 for part in tensors),
            f"{self._device} {self._data.config.compute.precision}",
            repr(request.request.selection),
            repr(request.proximal_mu),
            state_sha256(own),
            *more,
        )

    def _digest(self, *parts: str) -> str:
        """Hash what every release depends on: code, settings, data and plan; and ``parts``."""
        fixed = (
            code_sha256(),
            self.settings.model_dump_json(),
            self._data_sha256,
            repr(self._plan),
        )
        return hashlib.sha256("\n".join((*fixed, *parts)).encode()).hexdigest()
