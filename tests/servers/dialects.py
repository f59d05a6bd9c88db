"""Servers and gateways with an OpenAI-compatible API, each in its own dialect.

All give the same annotations, as a function of the request's text. Each lists its models, refuses
what it does not know, and writes its answers as its documentation and source describe.
"""

import json

from aiohttp import web

from servers.openai_server import BEHAVIOURS, Behaviour, valid
from sp2dpo.panel.rubric import load_rubric

SCHEMA = load_rubric("semantic-gap").schema()


def problem(status, message, **fields):
    return web.json_response({"error": {"message": message, **fields}}, status=status)


def sent_schema(body):
    """The schema in a request; None if it holds none."""
    return body.get("response_format", {}).get("json_schema", {}).get("schema")


class Dialect(Behaviour):
    """A server that answers as vLLM does; subclasses change what differs."""

    name = "scripted"

    @staticmethod
    def add_options(parser):
        pass

    def __init__(self, options):
        super().__init__(options)
        self.bodies = []

    async def list_models(self, request):
        return web.json_response({"object": "list", "data": [self.listed(self.name)]})

    def listed(self, name):
        return {"id": name, "object": "model", "created": 0, "owned_by": type(self).__name__}

    async def chat(self, request, body, content):
        self.bodies.append(body)
        if body["model"] != self.name:
            return problem(404, f"The model `{body['model']}` does not exist.", code=404)
        if refusal := self.refusal(body):
            return refusal
        asked = {"json_schema": {"schema": SCHEMA}}
        text = json.dumps(valid({"messages": body["messages"], "response_format": asked}))
        if content.startswith("Answer with one word"):
            text = "ready"
        return web.json_response(self.completion(text, body))

    def refusal(self, body):
        """The answer to a request that this server does not accept; None for others."""
        if "response_format" in body and sent_schema(body) != SCHEMA:
            return problem(400, "the schema is not whole")
        return None

    def completion(self, text, body):
        return {
            "id": f"chatcmpl-{self.request_count}", "object": "chat.completion", "created": 0,
            "model": self.name, "choices": [self.choice(text)], "usage": self.usage(),
        }  # fmt: skip

    def choice(self, text):
        return {
            "index": 0, "message": self.message(text), "logprobs": None, "finish_reason": "stop"
        }  # fmt: skip

    def message(self, text):
        return {"role": "assistant", "content": text}

    def usage(self):
        return {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130}


class VLLM(Dialect):
    """Nulls and empty lists for all that a message could hold."""

    def listed(self, name):
        return super().listed(name) | {"root": name, "parent": None, "max_model_len": 16384}

    def message(self, text):
        return super().message(text) | {
            "refusal": None, "annotations": None, "audio": None, "function_call": None,
            "tool_calls": [], "reasoning": None, "reasoning_content": None,
        }  # fmt: skip

    def choice(self, text):
        return super().choice(text) | {"stop_reason": None, "token_ids": None}

    def usage(self):
        return super().usage() | {"prompt_tokens_details": {"cached_tokens": 64}}

    def completion(self, text, body):
        more = {"service_tier": None, "system_fingerprint": None, "prompt_logprobs": None}
        return super().completion(text, body) | more | {"kv_transfer_params": None}


class SGLang(Dialect):
    """Which token stopped it; the first request is aborted by the scheduler."""

    def listed(self, name):
        return super().listed(name) | {"root": name, "max_model_len": 16384}

    def message(self, text):
        return super().message(text) | {"reasoning_content": None, "tool_calls": None}

    def choice(self, text):
        if self.request_count == 1:
            cut = {"message": self.message(text[:5]), "finish_reason": "abort"}
            return super().choice(text) | cut | {"matched_stop": None}
        return super().choice(text) | {"matched_stop": 151645}

    def usage(self):
        return super().usage() | {"reasoning_tokens": 0, "prompt_tokens_details": None}

    def completion(self, text, body):
        return super().completion(text, body) | {"metadata": {"weight_version": "default"}}


class LlamaCpp(Dialect):
    """Timings; it answers 503 while the model loads, and lists models in two forms."""

    async def list_models(self, request):
        listed = self.listed(self.name) | {"meta": {"n_ctx_train": 32768, "size": 1}}
        models = [{"name": self.name, "model": self.name, "capabilities": ["completion"]}]
        return web.json_response({"models": models, "object": "list", "data": [listed]})

    def refusal(self, body):
        if self.request_count == 1:
            return problem(503, "Loading model", code=503, type="unavailable_error")
        return super().refusal(body)

    def completion(self, text, body):
        timings = {"cache_n": 0, "prompt_n": 100, "prompt_ms": 1.5, "predicted_per_second": 99.5}
        return super().completion(text, body) | {
            "system_fingerprint": "b6000-0000000", "timings": timings
        }  # fmt: skip


class Ollama(Dialect):
    """It lists a model with its tag, and may state no finish reason."""

    def listed(self, name):
        return super().listed(f"{name}:latest") | {"owned_by": "library"}

    def choice(self, text):
        choice = super().choice(text)
        del choice["logprobs"]
        return choice | ({} if self.request_count % 2 else {"finish_reason": None})

    def completion(self, text, body):
        return super().completion(text, body) | {"system_fingerprint": "fp_ollama"}


class LiteLLM(Dialect):
    """A wildcard in its list; the fields of the provider behind it."""

    name = "openai/scripted"

    def listed(self, name):
        return super().listed("openai/*") | {"created": 1677610602, "owned_by": "openai"}

    def message(self, text):
        fields = {"refusal": None, "annotations": []}
        return super().message(text) | {
            "tool_calls": None, "function_call": None, "provider_specific_fields": fields
        }  # fmt: skip

    def choice(self, text):
        return super().choice(text) | {"provider_specific_fields": {}}

    def usage(self):
        return super().usage() | {
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": None},
            "prompt_tokens_details": None,
        }

    def completion(self, text, body):
        return super().completion(text, body) | {"model": "scripted-2026", "service_tier": None}


class OpenRouter(Dialect):
    """Errors inside HTTP 200, the provider's own finish reason, blanks before the JSON."""

    name = "vendor/scripted"

    def refusal(self, body):
        if body.get("provider") != {"require_parameters": True}:
            return problem(404, "No endpoints found that support the requested parameters.")
        return super().refusal(body)

    async def chat(self, request, body, content):
        answer = await super().chat(request, body, content)
        return web.Response(
            body=b"\n         \n" * 3 + answer.body, status=answer.status,
            content_type="application/json",
        )  # fmt: skip

    def message(self, text):
        return super().message(text) | {"refusal": None, "reasoning": None}

    def choice(self, text):
        choice = super().choice(text) | {"native_finish_reason": "STOP"}
        if self.request_count == 2:
            error = {"code": 502, "message": "Upstream idle timeout exceeded"}
            return choice | {
                "finish_reason": "error", "native_finish_reason": None, "error": error,
                "message": self.message(""),
            }  # fmt: skip
        return choice

    def completion(self, text, body):
        if self.request_count == 1:
            metadata = {"provider_name": "Vendor", "raw": "slow down"}
            error = {"message": "Provider returned error", "code": 429, "metadata": metadata}
            return {"error": error, "user_id": "user"}
        return super().completion(text, body) | {"provider": "Vendor"}

    def usage(self):
        return super().usage() | {
            "cost": 0.0001, "is_byok": False, "prompt_tokens_details": {"cached_tokens": 0}
        }  # fmt: skip


class TGI(Dialect):
    """Its own finish reason, and no `json_schema`."""

    def refusal(self, body):
        if "response_format" in body:
            return problem(422, "Failed to deserialize: response_format: missing field `value`")
        return None

    def choice(self, text):
        return super().choice(text) | {"finish_reason": "eos_token"}

    def completion(self, text, body):
        return super().completion(text, body) | {"system_fingerprint": "3.3.4-native"}


class ReasoningGateway(Dialect):
    """No list of models; thinking in every form; no bounds in a schema, no `max_tokens`."""

    async def list_models(self, request):
        return problem(404, "Not Found")

    def refusal(self, body):
        if "max_tokens" in body:
            return problem(
                400,
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.",
                code="unsupported_parameter",
            )
        if "maximum" in json.dumps(body.get("response_format", {})):
            return problem(400, "For 'integer' type, property 'maximum' is not supported")
        return None

    def message(self, text):
        thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]
        forms = (
            {"content": text, "reasoning_content": "Hm.", "reasoning": None},
            {"content": text, "reasoning_content": "", "reasoning": ""},
            {"content": text, "reasoning": "Hm.", "reasoning_details": []},
            {"content": [*thinking, {"type": "text", "text": text}]},
            {"content": f"<think>\nHm.\n</think>\n\n{text}"},
        )
        return {"role": "assistant"} | forms[self.request_count % len(forms)]

    def choice(self, text):
        reasons = ("stop", "STOP", "end_turn", None)
        return super().choice(text) | {"finish_reason": reasons[self.request_count % len(reasons)]}

    def usage(self):
        return super().usage() | {"completion_tokens_details": {"reasoning_tokens": 12}}


DIALECTS = {
    "vllm": VLLM,
    "sglang": SGLang,
    "llama.cpp": LlamaCpp,
    "ollama": Ollama,
    "litellm": LiteLLM,
    "openrouter": OpenRouter,
    "tgi": TGI,
    "reasoning-gateway": ReasoningGateway,
}
"""Behaviours by name; `openai_server.serving` starts them, once this module is imported."""
BEHAVIOURS.update(DIALECTS)
