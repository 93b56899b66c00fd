"""Prompts on an opened scene, one object after the other, chip by chip."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from geosam_stac.errors import DataError, GeosamStacError, UsageError
from geosam_stac.store.follow import ObjectMask, Predictor, pick_chip, segment_object
from geosam_stac.store.prompting import ObjectPrompt
from geosam_stac.store.segmentation import Segmentation

if TYPE_CHECKING:
    from geosam_stac.store.scene import Scene


def segment(
    scene: Scene,
    decoder: Predictor,
    prompts: Sequence[ObjectPrompt],
    *,
    failed: Mapping[Hashable, UsageError] | None = None,
    multimask: bool = False,
    follow: bool = True,
) -> Segmentation:
    """Prompt objects; those of one chip follow each other, so that it is read once.

    Parameters
    ----------
    scene, decoder
        Whose features, and by which decoder.
    prompts
        One an object.
    multimask, follow
        See `follow.segment_object`.
    failed
        Objects that have no prompt, and why; of a file of several, one more that lies outside the
        scene joins them.

    Raises
    ------
    UsageError
        The only object lies outside the scene or on a skipped chip; or all of several do.
    DataError
        Features are missing, damaged, or without the levels that the decoder needs.
    """
    errors: dict[Hashable, GeosamStacError] = dict(failed or {})
    rows: dict[int, int] = {}
    for number, prompt in enumerate(prompts):
        try:
            rows[number] = pick_chip(scene, prompt)
        except UsageError as error:
            errors[prompt.id] = error
    if errors and not rows:
        raise next(iter(errors.values()))
    found: dict[int, list[ObjectMask]] = {}
    for number in sorted(rows, key=lambda number: (rows[number], number)):
        found[number] = segment_object(
            scene,
            decoder,
            prompts[number],
            row=rows[number],
            multimask=multimask,
            follow=follow,
        )
    return Segmentation(
        item_id=scene.item.id,
        model=str(scene.item.properties.get("mlm:name")),
        scene_geobox=scene.geobox,
        objects=tuple(mask for number in sorted(found) for mask in found[number]),
        failed=errors,
    )


def check_levels(scene: Scene) -> None:
    """DataError where the levels that the model's decoder needs were left out.

    Told before weights are loaded: the decoder would say it, too.
    """
    names = scene.feature_names
    needed = [output.name for output in scene.model.outputs]
    if names and not set(needed) <= set(names):
        raise DataError(
            f"these features cannot be prompted: the mask decoder of {scene.model.name} needs "
            "levels that were left out",
            item=scene.item.id,
            expected=", ".join(needed),
            got=", ".join(names),
            hint="Encode again with --levels all; the embedding alone serves similarity and PCA",
        )
