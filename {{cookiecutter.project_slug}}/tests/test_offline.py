"""Tests run without a network, in this process and in those that it starts."""

import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from kfold.errors import UserError
from kfold.model.build import build_model, hub_answers

ELSEWHERE = "192.0.2.1"  # an address for examples, nobody's


@pytest.mark.parametrize(
    "connect",
    [
        lambda: socket.create_connection((ELSEWHERE, 80), timeout=0.1),
        lambda: socket.socket().connect_ex((ELSEWHERE, 80)),
        lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80)),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", (ELSEWHERE, 53)),
        lambda: socket.getaddrinfo("example.com", 443),
        lambda: socket.gethostbyname("example.com"),
        lambda: urllib.request.urlopen("https://example.com", timeout=0.1),
    ],
)
def test_no_other_machine_can_be_reached(connect):
    with pytest.raises(OSError, match=r"tests run without a network, but socket\.\w+ asked for (192|2001|example)"):
        connect()


def test_a_process_that_a_test_starts_is_held_to_it_too():
    code = f"import socket; socket.create_connection(('{ELSEWHERE}', 80), timeout=0.1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "tests run without a network" in done.stderr


def test_this_machine_and_loader_processes_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    with socket.create_server(("localhost", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()
    left, right = socket.socketpair()
    left.close()
    right.close()
    loader = DataLoader(TensorDataset(torch.arange(6)), batch_size=2, num_workers=2)
    assert np.concatenate([batch.numpy() for (batch,) in loader]).tolist() == list(range(6))


def test_pretrained_weights_are_refused_in_one_line_and_no_hub_is_asked(monkeypatch):
    assert not hub_answers()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"pretrained weights of resnet18 cannot be downloaded"):
        build_model("resnet18", 3, 32, pretrained=True)
