"""A teacher that answers at once: the cheapest OpenAI-compatible server that we could write.

One thread, epoll, HTTP/1.1 with connections kept alive, and a reply made beforehand, valid under
the packaged labelled rubric. A request costs two system calls and no parsing beyond its length, so
that a benchmark measures its client. `GET /counts` tells how many chats were answered, and the
monotonic times of the first and of the last.

    python tests/benchmarks/zero_latency.py
"""

import json
import select
import socket
import time

MODEL = "scripted"
RATIONALE = "The first response answers the question that was asked, the second one does not. "
ANNOTATION = {
    "rationale": (3 * RATIONALE)[:190],
    "category": "reasoning",
    "magnitude": 6,
    "confidence": 8,
}


def answer(payload):
    body = json.dumps(payload).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def completion():
    """A whole chat completion, as vLLM would send it."""
    message = {"role": "assistant", "content": json.dumps(ANNOTATION)}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1100, "completion_tokens": 60, "total_tokens": 1160}
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [choice],
        "usage": usage,
    }


MODELS = answer({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
COMPLETION = answer(completion())


class Server:
    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.poll = select.epoll()
        self.poll.register(self.listener.fileno(), select.EPOLLIN)
        self.clients = {}
        self.begun = {}
        self.chats, self.first, self.last = 0, 0.0, 0.0

    def serve(self):
        print(f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1", flush=True)
        while True:
            for descriptor, _ in self.poll.poll():
                if descriptor == self.listener.fileno():
                    self.accept()
                else:
                    self.read(descriptor)

    def accept(self):
        client, _ = self.listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.clients[client.fileno()] = client
        self.poll.register(client.fileno(), select.EPOLLIN)

    def read(self, descriptor):
        client = self.clients[descriptor]
        try:
            data = client.recv(1 << 18)
            if data:
                self.take(descriptor, client, self.begun.pop(descriptor, b"") + data)
                return
        except OSError:  # the client is gone
            pass
        self.poll.unregister(descriptor)
        self.begun.pop(descriptor, None)
        self.clients.pop(descriptor).close()

    def take(self, descriptor, client, data):
        """Answers a whole request; keeps the beginning of one until its rest comes."""
        end = data.find(b"\r\n\r\n")
        if end < 0 or len(data) < end + 4 + length_of(data, end):
            self.begun[descriptor] = data
            return
        if data.startswith(b"POST"):
            self.last = time.monotonic()
            self.first = self.first or self.last
            self.chats += 1
            client.sendall(COMPLETION)
        elif data.startswith(b"GET /counts"):
            counts = {"chats": self.chats, "first": self.first, "last": self.last}
            client.sendall(answer(counts))
        else:
            client.sendall(MODELS)
        if b"Connection: close" in data[:end]:
            client.shutdown(socket.SHUT_WR)


def length_of(data, end):
    """What a request's head says of its body, in bytes."""
    head = data[:end].lower()
    place = head.find(b"content-length:")
    return int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0


if __name__ == "__main__":
    Server().serve()
