"""Rows of a data set on the Hub, through its own clients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def resolve(
    name: str, split: str | None, revision: str | None
) -> tuple[str, str | None, str | None]:
    """The split to read, the commit that a branch or a tag names now, and the licence there.

    The licence is what the data set's card says; None where it says none, or several.

    Raises:
        ValueError: there is no such split.
        OSError: there is no such data set or revision, or the Hub cannot be reached.
    """
    import datasets  # noqa: PLC0415 - slow to import, and only Hub sources need it
    import huggingface_hub  # noqa: PLC0415

    with hub_errors(f"{name}@{revision}" if revision else name):
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision)
        sha, card = info.sha, info.card_data
        splits = datasets.get_dataset_split_names(name, revision=sha)
    if split is None:
        split = splits[0] if len(splits) == 1 else "train"
    if split not in splits:
        raise ValueError(f"{name} has the splits {', '.join(splits)}: name one as {name}:SPLIT")
    license = card.license if card else None
    return split, sha, license if isinstance(license, str) else None


def read_hub_rows(name: str, split: str, sha: str | None) -> Iterator[dict[str, Any]]:
    """All rows of a split at a commit, in their order."""
    import datasets  # noqa: PLC0415

    with hub_errors(f"{name}@{sha}"):
        rows = datasets.load_dataset(name, split=split, revision=sha)
    yield from rows  # type: ignore[misc]


NO_TOKEN = "the Hub wants to know who you are: `hf auth login`, or set HF_TOKEN"


class HubError(OSError):
    """Something of ours that did not work out at the Hub, in words for people."""


@contextmanager
def hub_errors(what: str, *, kind: str = "data set") -> Iterator[None]:
    """Makes cause line for people of whatever the Hub's clients raise about a repo of that kind."""
    from datasets.exceptions import DatasetsError  # noqa: PLC0415
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        yield
    except HubError as error:
        raise OSError(f"{what}: {_one_line(error)}") from error
    except errors.GatedRepoError as error:
        raise OSError(f"{what}: the Hub gives it only to those who asked for access") from error
    except errors.RepositoryNotFoundError as error:
        raise OSError(f"{what}: the Hub has no such {kind}, or none that you may read") from error
    except errors.RevisionNotFoundError as error:
        raise OSError(f"{what}: the {kind} has no such revision") from error
    except errors.LocalTokenNotFoundError as error:
        raise OSError(f"{what}: {NO_TOKEN}") from error
    except ValueError as error:
        raise ValueError(f"{what}: {_one_line(error)}") from error
    # HTTPError also stands for a Hub that cannot be reached; it is no OSError.
    except (errors.HTTPError, DatasetsError, OSError) as error:
        reasons = ": ".join(_one_line(cause) for cause in (error, error.__cause__) if cause)
        raise OSError(f"{what}: the Hub's client says: {reasons}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
