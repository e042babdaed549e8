"""The searches of a worker: the labels of its models, with the thresholds, passes and limits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import SettingsInvalid
from tasks.messages import FACE, Rule
from tasks.rules import EVERY_OTHER, rule_for
from tasks.settings import PREFIX
from worker.detection.presets import PassSettings
from worker.model_settings import LabelSettings
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.detection.labelled import Search
    from worker.detection.model import Model
    from worker.detection.tiled import ModelInput, TooMany
    from worker.treatments import Treatments

NEAR_MARGIN = 0.05  # Scores that exceed the threshold by less than this are near it.


@dataclass(frozen=True)
class LoadedModel:
    """A model, the label of each of its classes, and the settings that it was loaded with.

    `classes` is empty if the model states no labels: all that it finds are faces.
    """

    model: "Model"
    classes: Mapping[int, str]
    settings: WorkerSettings

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of its classes, each once."""
        return tuple(dict.fromkeys(self.classes.values())) or (FACE,)


def settings_of_models(settings: WorkerSettings) -> list[WorkerSettings]:
    """Return the settings of each model as if it were the only one.

    VEIL_SCORE_THRESHOLD is that of the first model.
    """
    found = []
    for number, one in enumerate(settings.model_addresses()):
        changes = {
            "model": one.address,
            "model_sha256": one.sha256,
            "models": (),
            "plates": False,
            "score_threshold": settings.score_threshold if number == 0 else None,
        }
        found.append(settings.model_copy(update=changes))
    return found


def rule_of(settings: WorkerSettings, label: str) -> LabelSettings:
    """Return the rule of the settings for `label`."""
    return rule_for(settings.rules, label) or LabelSettings()


def threshold_of(settings: WorkerSettings, label: str, own: float) -> float:
    """Return the score threshold of `label`; `own` is that of its model."""
    return rule_of(settings, label).threshold or settings.score_threshold or own


def lowest_threshold(settings: WorkerSettings, folder: Path, name: str) -> float:
    """Return the lowest score threshold of the labels of the model in `folder`.

    `name` is the model's name in messages. Raises ModelInvalid.
    """
    from worker.detection.model import stated_labels, stated_threshold

    own = stated_threshold(folder, name)
    labels = set(stated_labels(folder).values()) or {FACE}
    return min(threshold_of(settings, label, own) for label in labels)


def labels_to_hide(settings: WorkerSettings, models: Sequence[LoadedModel]) -> tuple[str, ...]:
    """Return the labels that `models` search for: those that no rule of the settings ignores.

    Raises SettingsInvalid for a rule of a label that no model has, and if no label remains.
    """
    labels = dict.fromkeys(label for one in models for label in one.labels)
    for label in settings.rules:
        if label not in (*labels, EVERY_OTHER):
            raise SettingsInvalid(
                f"{PREFIX}RULES: no model finds {label}: choose from {', '.join(labels)}"
            )
    wanted = tuple(label for label in labels if not rule_of(settings, label).ignore)
    if not wanted:
        raise SettingsInvalid(f"{PREFIX}RULES ignores every label: {', '.join(labels)}")
    return wanted


def rules_of_treatment(settings: WorkerSettings) -> dict[str, Rule]:
    """Return the rules of the settings, without what they say of searches."""
    return {label: rule.rule for label, rule in settings.rules.items()}


def searches_of(
    settings: WorkerSettings,
    models: Sequence[LoadedModel],
    inputs: Sequence["ModelInput"],
    labels: Iterable[str],
) -> tuple["Search", ...]:
    """Return the searches for `labels` with `models`, whose inputs are `inputs`."""
    from worker.detection.labelled import Search

    found = []
    wanted = set(labels)
    for number, (loaded, takes) in enumerate(zip(models, inputs, strict=True)):
        for label in loaded.labels:
            if label not in wanted:
                continue
            passes = passes_of(settings, label)
            threshold = threshold_of(loaded.settings, label, loaded.model.score_threshold)
            found.append(
                Search(
                    label,
                    number,
                    passes,
                    threshold,
                    threshold + NEAR_MARGIN,
                    takes,
                    settings.detect_seconds * passes.passes,
                    loaded.classes,
                    _too_many(loaded, label, threshold, is_first=number == 0),
                )
            )
    return tuple(found)


def _too_many(loaded: LoadedModel, label: str, threshold: float, *, is_first: bool) -> "TooMany":
    """Return the errors of a picture with more objects of `label` than the model can return.

    They name the setting that decides the threshold of this model and label.
    """
    from worker.detection.tiled import TOO_MANY_FACES, TooMany

    has_rule = rule_of(loaded.settings, label).threshold is not None
    if is_first and loaded.labels == (FACE,) and not has_rule:
        return TOO_MANY_FACES
    return TooMany(
        f"the model {loaded.model.name}",
        "faces" if label == FACE else f"objects of the label {label}",
        f'set {PREFIX}RULES="{label}: threshold=…" above {threshold:g}',
    )


def passes_of(settings: WorkerSettings, label: str) -> PassSettings:
    """Return the passes of the search for `label`.

    Only the landmarks of faces tell that a picture is turned, so other objects are searched for in
    turned passes only if a setting says so.
    """
    rule = rule_of(settings, label)
    if rule.preset:
        settings = settings.model_copy(update={"preset": rule.preset, "scales": None})
    passes = settings.pass_settings()
    turned = rule.turned
    if turned is None and label != FACE:
        turned = settings.turned or "never"
    return replace(passes, scales=rule.scales or passes.scales, turned=turned or passes.turned)


def seconds_of(settings: WorkerSettings, searches: Sequence["Search"]) -> float:
    """Return the time limit in seconds of all `searches` in one view of a frame."""
    return min(sum(one.seconds for one in searches), settings.longest_view_seconds())


def recipe_of_labels(
    searches: Sequence["Search"], models: Sequence[LoadedModel], treatments: "Treatments"
) -> list[dict[str, Any]]:
    """Return what decides the output beyond a search for faces with one model; empty if nothing.

    So the recipe of a worker that only hides faces is that of earlier versions.
    """
    from worker.detection.objects import LEAST_SIDE

    found = []
    for search in searches:
        treatment = treatments.of(search.label)
        one = {
            "label": search.label,
            "model": models[search.model].model.digest,
            "score_threshold": search.score_threshold,
            "look": asdict(search.settings),
            "style": asdict(treatment.style),
            "smallest": treatment.smallest,
        }
        if search.label != FACE:
            one["least_side"] = LEAST_SIDE
        found.append(one)
    hides_faces_alone = len(found) == 1 and found[0]["label"] == FACE
    return [] if hides_faces_alone and not found[0]["smallest"] else found
