"""Load a data set of sp2dpo, from a folder or the Hub, after verifying it."""

import datasets

from sp2dpo.dataset.manifest import read_manifest
from sp2dpo.dataset.verify import Progress, verify_dataset
from sp2dpo.listing import config_files
from sp2dpo.tables import read_parquet


def load_pairs(source: str, *, progress: Progress | None = None) -> datasets.Dataset:
    """Verify a data set with `verify_dataset` and return its rows.

    Args:
        source: Folder, `org/name`, or `org/name@revision` (a branch, a tag or a commit).
        progress: Called with parts of the rows that are verified; see `verify.Progress`.

    Returns:
        The rows of the config `default`.

    Raises:
        ValueError: The data set is inconsistent, or sp2dpo did not write it.
        OSError: There is no such data set, or the Hub cannot be reached.
    """
    # The Hub's client checks the size of a downloaded file, but not its hash.
    result = verify_dataset(source, **({"progress": progress} if progress else {}))
    if not result.consistent:
        wrong = "; ".join(
            f"{check.name}: {check.message}" for check in result.checks if not check.holds
        )
        raise ValueError(f"{result.data} is not consistent: {wrong}")
    # Only the verified files: a folder or a repo may contain others.
    files = read_manifest(result.data.folder).files
    names = config_files(files, "default")
    return read_parquet(
        [result.data.folder / name for name in names],
        hashes=[files[name].sha256 for name in names],
    )
