"""Decide which API keys may be sent where: a YAML file names both, and may come from a stranger.

A key is sent to a host of another machine only if the user allowed that variable for that host. A
confirmation at a terminal is remembered in a file of the user, never in a store or a panel.
"""

import json
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sp2dpo.files import read_text, write_json
from sp2dpo.inference.connection import is_loopback

if TYPE_CHECKING:
    from sp2dpo.inference.endpoint import Endpoint

# Only these, so that no two parsers of addresses can disagree about the host.
_NETLOC = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_OWNERS = {
    "Hugging Face": "HF_ HUGGING_FACE_ HUGGINGFACE",
    "a cloud or a cluster": "AWS_ AMAZON_ AZURE_ ARM_ GOOGLE_ GCP_ GCLOUD_ CLOUDSDK_ OCI_ ALICLOUD_"
    " ALIBABA_CLOUD_ TENCENTCLOUD_ IBMCLOUD_ DIGITALOCEAN_ CLOUDFLARE_ CF_ HEROKU_ VERCEL_ NETLIFY_"
    " FLY_ KUBE VAULT_ TF_ PULUMI_ SLURM_ RAY_",
    "version control or CI": "GITHUB_ GH_ GITLAB_ BITBUCKET_ GIT_ ACTIONS_ CI_ CIRCLE TRAVIS_"
    " JENKINS_ BUILDKITE_ DRONE_ CODECOV_",
    "a registry of packages": "NPM_ NODE_AUTH_ PYPI_ TWINE_ UV_ PIP_ POETRY_ CARGO_ DOCKER CONDA_"
    " ANACONDA_",
    "a tracker of experiments": "WANDB_ COMET_ NEPTUNE_ MLFLOW_ CLEARML_ KAGGLE_",
    "a database": "DATABASE_ DB_ PG POSTGRES MYSQL_ REDIS_ MONGO",
    "logins and signatures": "SSH_ GPG_ PGP_ SUDO_ KRB5",
}
"""Beginnings of variables that belong to another service than a model's, by its kind."""
_PASSWORD = re.compile("PASSW|PASSPHRASE|PRIVATE_KEY|SECRET_ACCESS")
_MODEL_KEYS = (
    "AZURE_OPENAI_API_KEY", "AZURE_API_KEY", "AZURE_AI_API_KEY", "AZURE_INFERENCE_CREDENTIAL",
    "AWS_BEARER_TOKEN_BEDROCK", "GOOGLE_API_KEY", "GOOGLE_AI_API_KEY",
    "GOOGLE_GENERATIVE_AI_API_KEY",
)  # fmt: skip
"""Variables with such a beginning that are keys of models alone."""
_OWN_HOSTS = {
    "HF_TOKEN": "router.huggingface.co",
    "HUGGING_FACE_HUB_TOKEN": "router.huggingface.co",
    "GITHUB_TOKEN": "models.github.ai",
    "WANDB_API_KEY": "api.inference.wandb.ai",
}
"""Variables of other services that serve models, too, and the only host that each is sent to."""


@dataclass(frozen=True, kw_only=True, order=True)
class KeyUse:
    """The use of an API key for a host; as text `VARIABLE=HOST`.

    Attributes:
        variable: Name of the environment variable with the key.
        host: Name of the host in lower case, with its port unless that is 443. Begins with
            `http://` if the key is sent without encryption.
    """

    variable: str
    host: str

    def __str__(self) -> str:
        return f"{self.variable}={self.host}"

    @classmethod
    def parse(cls, text: str) -> "KeyUse":
        """Parse `VARIABLE=HOST`.

        Raises:
            ValueError: If the text has another form.
        """
        variable, _, address = text.partition("=")
        address = address.removesuffix("/")
        if "://" not in address:
            address = f"https://{address}"
        if not variable or not address.startswith(("http://", "https://")):
            raise ValueError(_not_a_use(text))
        host = _host(address)
        if host is None or address.count("/") > 2:
            raise ValueError(_not_a_use(text))
        return cls(variable=variable, host=host)


def _not_a_use(text: str) -> str:
    return (
        f"{text!r} must be VARIABLE=HOST, such as OPENAI_API_KEY=api.openai.com,"
        " LAB_API_KEY=models.lab.org:8443 or, without encryption, LAB_API_KEY=http://10.0.0.5:8000"
    )


def _host(address: str) -> str | None:
    """Return the host of an address as `KeyUse` names it; None if it cannot be named surely."""
    parts = urlsplit(address)
    if not _NETLOC.fullmatch(parts.netloc) or parts.hostname is None:
        return None
    name = parts.hostname.rstrip(".")
    name = f"[{name}]" if ":" in name else name
    is_plain = parts.scheme == "http"
    port = "" if parts.port in (None, 80 if is_plain else 443) else f":{parts.port}"
    return f"{'http://' * is_plain}{name}{port}"


def _is_this_machine(address: str) -> bool:
    name = (urlsplit(address).hostname or "").rstrip(".")
    # Not the names below localhost, which some resolvers ask other machines for.
    return is_loopback(name) and not name.endswith(".localhost")


def key_problem(variable: str, addresses: Iterable[str]) -> str | None:
    """Return why a variable may never be sent to these addresses, whoever allows it.

    Args:
        variable: Name of the environment variable.
        addresses: Base URLs; none for a server that the package starts.
    """
    name = variable.upper()
    if name in _MODEL_KEYS:
        return None
    hosts = {_host(address) for address in addresses}
    if hosts and hosts == {_OWN_HOSTS.get(name)}:
        return None
    owner = next(
        (owner for owner, starts in _OWNERS.items() if name.startswith(tuple(starts.split()))),
        "logins and signatures" if _PASSWORD.search(name) else None,
    )
    if owner is None:
        return None
    only = f"to {_OWN_HOSTS[name]} alone" if name in _OWN_HOSTS else "to no model's server"
    return (
        f"{variable} is sent {only}, because variables of this name belong to {owner}: put a key "
        "for this server alone into another variable, such as TEACHER_API_KEY"
    )


def is_api_key(variable: str) -> bool:
    """Return whether a variable holds an API key by its name, other than that of vLLM's servers."""
    name = variable.upper()
    return name != "VLLM_API_KEY" and (name.endswith("_API_KEY") or name in _MODEL_KEYS)


def key_uses(endpoint: "Endpoint") -> list[KeyUse]:
    """Return the uses of an endpoint's API key that the user must allow, each once.

    None are needed for servers of this machine: those at loopback addresses, and those that the
    package starts.

    Raises:
        ValueError: If the key may never be sent there.
    """
    variable = endpoint.api_key_env
    if variable is None:
        return []
    if problem := key_problem(variable, endpoint.base_urls):
        raise ValueError(f"{endpoint.label}: {problem}")
    uses = []
    for address in endpoint.base_urls:
        host = _host(address)
        if host is None:
            raise ValueError(
                f"{endpoint.label}: {address!r} does not name its host in plain ASCII, as an"
                " address that gets a key must (xn--... for other letters): correct base_url"
            )
        if not _is_this_machine(address):
            uses.append(KeyUse(variable=variable, host=host))
    return list(dict.fromkeys(uses))


def allow_keys(
    endpoints: Iterable["Endpoint"], send_keys: Collection[str | KeyUse]
) -> frozenset[KeyUse]:
    """Return the allowed uses of API keys: those in `send_keys`, and those that are remembered.

    Args:
        endpoints: Models whose keys are about to be sent.
        send_keys: Uses that the user allows, as `VARIABLE=HOST`.

    Raises:
        ValueError: If a key of these endpoints may not be sent to one of its hosts.
    """
    allowed = {KeyUse.parse(use) if isinstance(use, str) else use for use in send_keys}
    needed = {use: endpoint for endpoint in endpoints for use in key_uses(endpoint)}
    if not needed.keys() <= allowed:
        allowed |= remembered_keys()
    missing = [use for use in needed if use not in allowed]
    if missing:
        flags = " ".join(f"--send-key {use}" for use in missing)
        every = f"; for all of them: {flags}" if len(missing) > 1 else ""
        raise ValueError(refusal(needed[missing[0]], missing[0]) + every)
    return frozenset(allowed)


def refusal(endpoint: "Endpoint", use: KeyUse) -> str:
    """Return the message that a key is not sent, with what the user can do."""
    if use.host.startswith("http://"):
        name = urlsplit(use.host).hostname
        port = urlsplit(use.host).port or 80
        return (
            f"{endpoint.label}: the API key in {use.variable} would cross the network to {use.host}"
            f" unencrypted, for everybody on the way to read: use https, or a tunnel (ssh -L {port}"
            f":localhost:{port} {name}, and base_url: http://127.0.0.1:{port}/v1); in a network"
            f" that you trust, give --send-key {use} (in Python send_keys=['{use}'])"
        )
    return (
        f"{endpoint.label}: the API key in {use.variable} is sent to {use.host} only after"
        f" confirmation; give --send-key {use} (in Python send_keys=['{use}']) if you trust this"
        " file and this host"
    )


def memory_path() -> Path | None:
    """Return the file of remembered confirmations; None if the user has no home folder."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not folder.is_absolute():  # the XDG specification ignores relative ones, too
        try:
            folder = Path.home() / ".config"
        except RuntimeError:
            return None
    return folder / "sp2dpo" / "keys.json"


def remembered_keys() -> frozenset[KeyUse]:
    """Return the uses that the user confirmed before.

    Raises:
        ValueError: If the file of confirmations has another form.
        OSError: If it cannot be read.
    """
    path = memory_path()
    if path is None or not path.exists():
        return frozenset()
    try:
        return frozenset(map(KeyUse.parse, json.loads(read_text(path))["allowed"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a file of confirmed API keys ({error}); remove it, and confirm again"
        ) from error


def remember_keys(uses: Iterable[KeyUse]) -> Path | None:
    """Add uses to those that are remembered, and return the file; None if there is none.

    Raises:
        ValueError: If the file of confirmations has another form.
        OSError: If it cannot be written.
    """
    path = memory_path()
    if path is None:
        return None
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(path, {"allowed": sorted(map(str, {*remembered_keys(), *uses}))})
    return path
