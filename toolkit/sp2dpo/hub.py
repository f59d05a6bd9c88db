"""Read data sets from the Hugging Face Hub, and replace its exceptions by one-line errors."""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self, cast

from sp2dpo.text import one_line

_NAME = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)"
    # What the Hub allows in the name of a config, except the separators of this syntax.
    r"(?:/(?P<config>[^<>:/\\|?*@]+))?(?::(?P<split>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)
NAME_FORMS = "org/name, org/name:split@revision, org/name/config:split@revision"
_LISTED = 20
"""Maximum number of configs in a message."""


@dataclass(frozen=True, kw_only=True)
class HubName:
    """Name of rows on the Hub, `org/name/config:split@revision`; only `org/name` is required.

    Attributes:
        repo: `org/name`.
        config: Name of the config; None for the default or only one.
        split: Name of the split; None if not stated.
        revision: Branch, tag or commit; None for the main branch.
    """

    repo: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the name that a text states; None if it is none."""
        match = _NAME.fullmatch(text)
        return None if match is None else cls(**match.groupdict())

    @property
    def rows(self) -> str:
        """The name without the revision."""
        config = f"/{self.config}" if self.config else ""
        return f"{self.repo}{config}:{self.split}" if self.split else f"{self.repo}{config}"

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.rows}@{self.revision}" if self.revision else self.rows


def resolve(name: HubName) -> tuple[HubName, str | None]:
    """Resolve a data set on the Hub to one config, one split and one commit.

    Args:
        name: Its name. Without a config, the data set must have only one, or a default one; without
            a split, only one, or one called `train`.

    Returns:
        The name, with `config` None for the default or only config, and the licence on the card,
        which is None if the card states none or several.

    Raises:
        ValueError: If the config or the split does not exist, or one must be named.
        OSError: If the data set or the revision does not exist, or the Hub cannot be reached.
    """
    import datasets  # noqa: PLC0415 - slow to import, and only Hub sources need it
    import huggingface_hub  # noqa: PLC0415

    with hub_errors(str(replace(name, config=None, split=None))):
        info = huggingface_hub.HfApi().dataset_info(name.repo, revision=name.revision)
        sha, card = info.sha, info.card_data
        # Use the same commit for the configs and the rows: a branch may move in between.
        configs = datasets.get_dataset_config_names(name.repo, revision=sha)
        default = datasets.get_dataset_default_config_name(name.repo, revision=sha)
        if (name.config is None and default is None) or name.config not in (None, *configs):
            raise UnknownConfig(name, configs)
        config = name.config or default
        splits = datasets.get_dataset_split_names(name.repo, config, revision=sha)
    split = name.split or (splits[0] if len(splits) == 1 else "train")
    if split not in splits:
        config_name = replace(name, split=None, revision=None)
        raise ValueError(
            f"{config_name} has the splits {', '.join(splits)}: name one as {config_name}:SPLIT"
        )
    license = card.license if card else None
    # The only or default config has no name in a source, as long as data sets had one config.
    named = replace(name, config=None if config == default else config, split=split, revision=sha)
    return named, license if isinstance(license, str) else None


class UnknownConfig(ValueError):
    """A data set has several configs, and a name states none of them.

    Args:
        name: The name.
        configs: Configs of the data set.
    """

    def __init__(self, name: HubName, configs: Sequence[str]) -> None:
        # `org/name:CONFIG` is often meant as the config, not as a split.
        split = None if name.split in configs else name.split
        texts = [str(replace(name, config=config, split=split)) for config in configs[:_LISTED]]
        # Names of configs may hold spaces or brackets, which a shell would take apart.
        texts = [shlex.quote(text) for text in texts]
        more = f" and {len(configs) - _LISTED} more" if len(configs) > _LISTED else ""
        has = f"no config {name.config}, but" if name.config else f"{len(configs)} configs:"
        listed = ", ".join(configs[:_LISTED])
        super().__init__(f"it has {has} {listed}{more}: pass {' or '.join(texts)}")


def read_hub_rows(name: HubName) -> Iterator[dict[str, Any]]:
    """Yield all rows of a split at a commit, in order; images are the bytes of their files."""
    import datasets  # noqa: PLC0415

    with hub_errors(f"{name.repo}@{name.revision}"):
        rows = cast(
            "datasets.Dataset",
            datasets.load_dataset(name.repo, name.config, split=name.split, revision=name.revision),
        )
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
