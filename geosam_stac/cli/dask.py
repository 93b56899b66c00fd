"""`encode --dask`: the same scenes, on the workers of a Dask cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from geosam_stac.cli import console
from geosam_stac.cli.inputs import Inputs, Work
from geosam_stac.cli.options import InForce
from geosam_stac.cli.plan_text import chips_text
from geosam_stac.cli.sessions import opened
from geosam_stac.cli.tally import each, publisher_of, result_document

if TYPE_CHECKING:
    from distributed import Client

    from geosam_stac.scale.dask import Recipe
    from geosam_stac.scale.work import Source, UnitResult
    from geosam_stac.session import Session


def encode_on_dask(address: str, inputs: Inputs, in_force: InForce, *, json_lines: bool) -> None:
    """Encode on the workers of a scheduler; results are told as they come, failures as `encode`.

    The workers read their own environment: credentials, tokens, the cache of weights.
    """
    from geosam_stac.scale.dask import Recipe, connect

    # The model is the workers': this machine plans, and puts together.
    with opened(inputs, in_force, device="cpu") as (session, works):
        recipe = Recipe(
            # With --geometry read, which the workers' disks need not have.
            config=session.config.replace({"device": in_force.config.device}),
            catalog=inputs.catalog,
            signer=inputs.signer,
            anonymous=inputs.anonymous_source,
            sources=in_force.sources,
            hosts=session.hosts.typed,
            inputs=session.inputs,
        )
        with connect(address) as client:
            run = _Run(client, session, list(works), recipe, json_lines=json_lines)
            try:
                each(
                    run.arrivals(),
                    run.tell,
                    inputs=inputs,
                    hosts=session.hosts,
                    out=session.config.out,
                )
            finally:
                run.publisher.finish()


class _Run:
    """Scenes in the order in which they are done, as `each` takes them."""

    def __init__(
        self,
        client: Client,
        session: Session,
        works: Sequence[Work],
        recipe: Recipe,
        *,
        json_lines: bool,
    ) -> None:
        self.publisher = publisher_of(session)
        self._client, self._session, self._recipe = client, session, recipe
        self._broken = [work for work in works if work.source is None]
        self._works = [work for work in works if work.source is not None]
        self._json_lines = json_lines
        self._last: UnitResult | None = None
        self._chips = 0

    def arrivals(self) -> Iterator[Work]:
        """Each scene when it has come to its end, with its error if it has one."""
        from geosam_stac.scale.dask import encode_all

        yield from self._broken
        sources = [work.source for work in self._works if work.source is not None]
        if sources:
            for result in encode_all(self._client, self._session, sources, self._recipe):
                self._last = result
                yield dataclasses.replace(self._works[result.unit.scene], error=result.error)
            console.note(f"{chips_text(self._chips)} encoded on the cluster")

    def tell(self, source: Source) -> None:
        """The scene that came last: its Item's href, and its publication."""
        assert self._last is not None and self._last.whole is not None
        whole = self._last.whole
        self._chips += whole.chips_encoded
        self.publisher.add(whole.href)
        if self._json_lines:
            console.result_json(result_document(whole))
        else:
            console.result(whole.href)
