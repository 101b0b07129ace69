"""The JSON Schema and the reader agree: what one takes the other takes, what one refuses the other refuses."""

from __future__ import annotations

import pytest
import yaml
from jsonschema import Draft202012Validator

from p2prw.errors import RequestError
from p2prw.scenario.schema import scenario_schema

WRITE = "{write: {peer: h/a, from: 'host,size=4K'}}"
BOTH_TAKE = [
    f"steps: [{WRITE}]",
    f"name: n\nseed: 0x10\ntime_limit: 2m\non_failure: stop\nvars: {{a: 1, b: x}}\nsteps: [{WRITE}]",
    f"device: {{name: soft0, mtu: 4096, tx_depth: 64, gid_index: auto}}\nsteps: [{WRITE}]",
    f"buffers: {{a: 'host,size=4K', b: {{kind: p2pmem, pci: '0000:01:00.0', size: 1M}}}}\nsteps: [{WRITE}]",
    "steps: [{name: s, serve: {listen: '127.0.0.1:0', once: true, regions: {a: {memory: 'host,size=4K', access: r}}}}]",
    "buffers: {b: 'host,size=1M'}\nsteps: [{serve: {regions: {a: {buffer: b}}}}]",
    "steps: [{op: read, transfer: {peer: h/a, to: host}, repeat: 2, time_limit: 500ms}]",
    "steps: [{matrix: {op: [read, write], size: [1, 4K]}, op: '${op}', "
    "transfer: {peer: h/a, to: host, from: 'host,size=${size}', size: '${size}'}}]",
    f"steps: [{{parallel: [{WRITE}, {{name: two, read: {{peer: h/a, to: host}}}}]}}]",
    "steps: [{write: {peer: h/a, from: 'host,size=4K', no_verify: yes, chunk: 64KiB, route: pin}, "
    "expect: bw >= 1 B/s, skip_unless: [root, device rxe0]}]",
]
BOTH_REFUSE = [
    "seed: 1",
    "steps: []",
    "steps: {}",
    "steps: [{}]",
    "steps: [{wirte: {}}]",
    "steps: [{bench: {peer: h/a, size: 4K}}]",
    f"stpes: []\nsteps: [{WRITE}]",
    f"seed: -1\nsteps: [{WRITE}]",
    f"seed: many\nsteps: [{WRITE}]",
    f"on_failure: halt\nsteps: [{WRITE}]",
    f"time_limit: soon\nsteps: [{WRITE}]",
    f"vars: {{'a-b': 1}}\nsteps: [{WRITE}]",
    f"device: {{naem: soft0}}\nsteps: [{WRITE}]",
    f"device: {{mtu: 1000}}\nsteps: [{WRITE}]",
    f"buffers: {{a: {{kind: hots}}}}\nsteps: [{WRITE}]",
    f"buffers: {{a: {{size: 4K}}}}\nsteps: [{WRITE}]",
    "steps: [{write: {peer: h/a, form: host}}]",
    "steps: [{write: {peer: h/a, from: 'host,size=4K', size: 4Q}}]",
    "steps: [{write: {peer: h/a, from: 'host,size=4K', no_verify: perhaps}}]",
    "steps: [{write: {peer: h/a, from: 'host,size=4K', route: rocket}}]",
    "steps: [{write: {}, read: {}}]",
    "steps: [{op: write, write: {peer: h/a, from: 'host,size=4K'}}]",
    "steps: [{transfer: {peer: h/a, from: 'host,size=4K'}}]",
    "steps: [{op: push, transfer: {peer: h/a, from: 'host,size=4K'}}]",
    "steps: [{repeat: 0, write: {peer: h/a, from: 'host,size=4K'}}]",
    "steps: [{matrix: {a: []}, write: {peer: h/a, from: 'host,size=4K'}}]",
    "steps: [{matrix: {a: [1, 1]}, write: {peer: h/a, from: 'host,size=4K'}}]",
    "steps: [{serve: {regions: {a: {access: r}}}}]",
    "steps: [{serve: {regions: {a: {memory: 'host,size=1K', access: x}}}}]",
    f"steps: [{{parallel: [{WRITE}], repeat: 2}}]",
]


@pytest.fixture(scope="module")
def validator():
    Draft202012Validator.check_schema(scenario_schema())
    return Draft202012Validator(scenario_schema())


@pytest.mark.parametrize("text", BOTH_TAKE)
def test_both_take_it(validator, scenario, text):
    validator.validate(yaml.safe_load(text))
    assert scenario(text).rows


@pytest.mark.parametrize("text", BOTH_REFUSE)
def test_both_refuse_it(validator, scenario, text):
    assert not validator.is_valid(yaml.safe_load(text)), "the schema takes it"
    with pytest.raises(RequestError):
        scenario(text)


def test_every_key_says_what_it_is_for():
    schema = scenario_schema()
    steps = schema["$defs"]["step"]["properties"]
    sections = [schema["$defs"][name]["properties"] for name in ("device", "transfer", "serve")]
    sections.append(schema["properties"]["bench"]["properties"])
    for properties in (schema["properties"], steps, *sections):
        for key, value in properties.items():
            assert "description" in value or key == "regions", key
