"""Change the files of a data set as somebody who also writes its manifest would."""

import hashlib
import json


def list_files(folder, *names):
    """Write the size and SHA-256 of some files, or of all, into the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    files = [folder / name for name in names] or [
        file for file in sorted(folder.rglob("*")) if file.is_file() and file != path
    ]
    for file in files:
        content = file.read_bytes()
        manifest["files"][file.relative_to(folder).as_posix()] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }
    path.write_text(json.dumps(manifest))
