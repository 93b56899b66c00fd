"""`geosam-stac verify`: whether an encoded scene is as it was written, and whole again if not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from geosam_stac.cli import console
from geosam_stac.cli.options import NO_METAVAR, Json, Quiet, Verbose
from geosam_stac.errors import DataError, UsageError

if TYPE_CHECKING:
    from geosam_stac.config import EncodeConfig
    from geosam_stac.session import Session
    from geosam_stac.sources.profiles import Profile


def verify(
    *,
    item: Annotated[
        str, typer.Argument(metavar="ITEM", help="A feature Item, or its folder: URL or path.")
    ],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            metavar=NO_METAVAR,
            help="Encode again what is missing or wrong, and nothing else.",
        ),
    ] = False,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="For --repair; default: as it was encoded."),
    ] = None,
    catalog: Annotated[
        str | None,
        typer.Option("--catalog", metavar="NAME", help="For --repair: the source's catalog."),
    ] = None,
    signer: Annotated[
        str | None,
        typer.Option("--signer", metavar="NAME", help="For --repair: as for encode."),
    ] = None,
    allow_private_hosts: Annotated[
        bool,
        typer.Option(
            "--allow-private-hosts",
            metavar=NO_METAVAR,
            help="For --repair: an Item on a store may name sources on this machine.",
        ),
    ] = False,
    json_lines: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check every object of an encoded scene against its recorded size and sha256.

    Prints a line for each that is missing or wrong. Exits with 0 if none is (or all are made good),
    else with 65.
    """
    console.set_verbosity(quiet=quiet, verbose=verbose)
    given = {"--device": device, "--catalog": catalog, "--signer": signer}
    if not repair and any(given.values()):
        flag = next(name for name, value in given.items() if value)
        raise UsageError(f"{flag} is for --repair", hint="Give --repair, or leave it out")
    from geosam_stac.store import FeatureItem, open_item
    from geosam_stac.verification import verify_item

    with console.ProgressSink() as sink:
        found = after = verify_item(FeatureItem(open_item(item)), sink=sink)
        if not json_lines:
            for finding in found.findings:
                console.result(str(finding))
        if repair and not found.is_whole:
            from geosam_stac.repair import repair_item
            from geosam_stac.sources.profiles import load_profile

            profile = None if catalog is None else load_profile(catalog)

            def session_of(config: EncodeConfig, sources: Mapping[str, str]) -> Session:
                said = {
                    "device": device or config.device,
                    "allow_private_hosts": allow_private_hosts,
                }
                return _session(config.replace(said), sources, sink, profile, signer)

            after = repair_item(found, session_of)
    if json_lines:
        console.result_json({**found.as_dict(), "repaired": repair and after.is_whole})
    if not after.is_whole:
        count = len(after.findings)
        raise DataError(
            f"{count:,} object{' is' if count == 1 else 's are'} missing or not as written",
            item=found.item.id,
            href=found.href,
            got=str(after.findings[0]) if repair else None,
            hint="Run it again" if repair else "Give --repair to encode them again",
        )
    if not found.is_whole:
        console.note(f"{len(found.findings):,} objects were made good")
    console.note(f"{after.objects:,} objects are as they were written")


def _session(
    config: EncodeConfig,
    sources: Mapping[str, str],
    sink: console.ProgressSink,
    profile: Profile | None,
    signer: str | None,
) -> Session:
    from geosam_stac.encoders.checkpoints import default_cache_dir, hugging_face_token
    from geosam_stac.session import Session
    from geosam_stac.sources.access import accesses

    session = Session(
        config,
        cache_dir=default_cache_dir(os.environ),
        sink=sink,
        profile=profile,
        access=accesses(profile=profile, signer=signer, environ=os.environ),
        token=hugging_face_token(os.environ),
    )
    session.config_sources = sources
    return session
