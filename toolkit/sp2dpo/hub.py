"""Read data sets from the Hugging Face Hub, and replace its exceptions by one-line errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sp2dpo.text import one_line


def resolve(
    name: str, split: str | None, revision: str | None
) -> tuple[str, str | None, str | None]:
    """Resolve a data set on the Hub to one commit.

    Args:
        name: `org/name`.
        split: Name of the split; None for the only one, or `train`.
        revision: Branch, tag or commit; None for the main branch.

    Returns:
        The split, the commit, and the licence on the card; the licence is None if the card states
        none or several.

    Raises:
        ValueError: If the split does not exist.
        OSError: If the data set or the revision does not exist, or the Hub cannot be reached.
    """
    import datasets  # noqa: PLC0415 - slow to import, and only Hub sources need it
    import huggingface_hub  # noqa: PLC0415

    with hub_errors(f"{name}@{revision}" if revision else name):
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision)
        sha, card = info.sha, info.card_data
        # Use the same commit for the splits and the rows: a branch may move in between.
        splits = datasets.get_dataset_split_names(name, revision=sha)
    if split is None:
        split = splits[0] if len(splits) == 1 else "train"
    if split not in splits:
        raise ValueError(f"{name} has the splits {', '.join(splits)}: name one as {name}:SPLIT")
    license = card.license if card else None
    return split, sha, license if isinstance(license, str) else None


def read_hub_rows(name: str, split: str, sha: str | None) -> Iterator[dict[str, Any]]:
    """Yield all rows of a split at a commit, in order; images are the bytes of their files."""
    import datasets  # noqa: PLC0415

    with hub_errors(f"{name}@{sha}"):
        rows = datasets.load_dataset(name, split=split, revision=sha)
        for column, feature in (rows.features or {}).items():
            stored = _without_decoding(feature)
            if stored != feature:
                rows = rows.cast_column(column, stored)
    # All rows are on disk by now, so an error from here on is not the Hub's.
    yield from rows  # type: ignore[misc]


def _without_decoding(feature: Any) -> Any:
    """Return the type of a column with its images, sounds and videos as bytes, at any depth."""
    from datasets import Audio, Image, List, Video  # noqa: PLC0415

    if isinstance(feature, Audio | Image | Video):
        return type(feature)(decode=False)
    if isinstance(feature, dict):
        return {name: _without_decoding(part) for name, part in feature.items()}
    if isinstance(feature, List):
        return List(_without_decoding(feature.feature), length=feature.length)
    return feature


NO_TOKEN = "you are not logged in to the Hugging Face Hub: run `hf auth login` or set HF_TOKEN"


class HubError(OSError):
    """An operation on the Hub failed; the message says why."""


@contextmanager
def hub_errors(subject: str, *, kind: str = "data set") -> Iterator[None]:
    """Replace exceptions of the Hub's clients by OSError or ValueError with a one-line message.

    Args:
        subject: Name of the repo, with which the message begins.
        kind: Kind of the repo, for the message.
    """
    from datasets.exceptions import DatasetsError  # noqa: PLC0415
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        yield
    except HubError as error:
        raise OSError(f"{subject}: {one_line(error)}") from error
    # A subclass of RepositoryNotFoundError, so it must be caught first.
    except errors.GatedRepoError as error:
        raise OSError(f"{subject}: access must be requested on the Hub first") from error
    except errors.RepositoryNotFoundError as error:
        raise OSError(
            f"{subject}: the Hub has no such {kind}, or you have no access to it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise OSError(f"{subject}: the {kind} has no such revision") from error
    except errors.LocalTokenNotFoundError as error:
        raise OSError(f"{subject}: {NO_TOKEN}") from error
    except ValueError as error:
        raise ValueError(f"{subject}: {one_line(error)}") from error
    # HTTPError includes connection failures and is not an OSError.
    except (errors.HTTPError, DatasetsError, OSError) as error:
        reasons = ": ".join(one_line(cause) for cause in (error, error.__cause__) if cause)
        raise OSError(f"{subject}: the Hub's client reports: {reasons}") from error
