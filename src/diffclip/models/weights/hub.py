"""The Hugging Face hub: which of its models a name means, its files, and a model of one's own put there."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from diffclip.errors import UserError
from diffclip.text import did_you_mean, listed

log = logging.getLogger(__name__)

HUB = re.compile(r"(?P<asked>hf:|hf-hub:)?(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
MADE_BY_THE_HUB = {".gitattributes"}
"""What a new repository holds."""


def asked_of_hub(source: str) -> tuple[str, str | None] | None:
    """The name and maybe the revision on the Hugging Face hub that a person means; None for a path.

    Warns where that is only likely: "owner/name" is no path, as no folder is called as the owner.
    """
    hub = HUB.fullmatch(source)
    if hub is None or (not hub["asked"] and os.path.lexists(Path(source).parent)):
        return None
    if not hub["asked"]:
        log.warning("%s is not on this disk: the Hugging Face hub is asked for it, as for hf:%s", source, source)
    return hub["name"], hub["revision"]


def open_clips_tag(source: str) -> tuple[str, str] | None:
    """The hub's name and the file, which may be empty, of weights by open_clip's name: ViT-B-32/laion2b_s34b_b79k.

    None where `source` is a path, or open_clip has no such model. Raises UserError for weights that it does not list.
    """
    hub = HUB.fullmatch(source)
    if hub is None or hub["asked"] or hub["revision"] or os.path.lexists(Path(source).parent):
        return None
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    model, _, tag = source.partition("/")
    tags = list_pretrained_tags_by_model(model)
    if not tags:
        return None
    if tag not in tags:
        raise UserError(
            f"open_clip lists no weights {tag!r} of {model}{did_you_mean(tag, tags)}; it lists {listed(tags)}; if you "
            f"mean the Hugging Face hub, write hf:{source}"
        )
    name, _, file = get_pretrained_cfg(model, tag)["hf_hub"].rpartition("/")
    return name, file


def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder with those files of a model that match a pattern, in the hub's own cache. Raises UserError."""
    import huggingface_hub  # takes half a second to import, and only this file needs it

    try:
        wanted = {"revision": revision} if revision else {}
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), **wanted))
    except Exception as error:  # offline, refused, unknown: of several libraries' types
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{name} is no file or directory here, and the Hugging Face hub does not give it: {reason}"
        ) from None


def repository(given: str) -> str:
    """ "owner/name", as the hub calls a model that is to be written. Raises UserError for anything else."""
    hub = HUB.fullmatch(given)
    if hub is None or hub["revision"]:
        raise UserError(f"{given} is no name of a model on the hub: expected OWNER/NAME, OWNER being you or your group")
    return str(hub["name"])


def push(folder: Path, name: str, *, private: bool, update: bool) -> str:
    """Put the files of a folder into the repository `name` of the hub, in one commit; returns its address.

    private: of a repository that this makes. update: whether one that holds files already may get others of the same
    names; its history keeps the old. HF_ENDPOINT says which hub, HF_TOKEN or `hf auth login` who asks.
    Raises UserError, with nothing of the hub changed but that the repository may be there, and empty.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    try:
        if hub.repo_exists(name):
            held = sorted({*hub.list_repo_files(name)} - MADE_BY_THE_HUB)
            if held and not update:
                raise UserError(
                    f"{name} on the hub holds {', '.join(held[:5])} already: give --update to write over it"
                )
        else:
            hub.create_repo(name, private=private)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="A model of diffclip")
    except UserError:
        raise
    except Exception as error:  # offline, refused, no token, a licence that it does not know: of many types
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{hub.endpoint} does not take {name}: {reason}") from None
    return f"{hub.endpoint}/{name}"
