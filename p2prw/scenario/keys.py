"""The keys of a scenario, a line each: what the reader accepts, the schema says and `p2prw help scenario` prints."""

from __future__ import annotations

FILE_KEYS = {
    "name": "A name for reports.",
    "seed": "One number from which all data is made; --seed wins. The default is 1.",
    "time_limit": "Bound the whole scenario (exit 6); --time-limit wins.",
    "on_failure": "continue (the default) or stop, at the first row that fails; --on-failure wins.",
    "vars": "Variables, used as ${name} in any value; --var NAME=VALUE wins.",
    "device": "The words of `device:`, for every step.",
    "buffers": "Named memory, as in every file.",
    "serve": "The words of `serve:`, for every step that serves.",
    "transfer": "The words of `transfer:`, for every step that writes or reads.",
    "bench": "What is measured, for every bench step.",
    "steps": "A list of steps, run in order.",
}

ACTIONS = {
    "serve": "Start a server here with these words of `serve:`; it ends with the scenario.",
    "write": "`p2prw write` with these words of `transfer:`.",
    "read": "`p2prw read` with these words of `transfer:`.",
    "transfer": "`p2prw write` or `read`, as `op` says.",
    "smoke": "`p2prw smoke` with its options as keys.",
    "bench": "`p2prw bench` with its options as keys; its figures are those of its worst row.",
    "parallel": "A list of steps whose rows all run at the same time.",
}

STEP_KEYS = {
    "name": "The step's name; ${NAME.address} is the address of a server.",
    **ACTIONS,
    "op": "With `transfer`: write or read; may come from a matrix.",
    "device": "The words of `device:` for this step.",
    "matrix": "name: [values]; one row for each combination, ${name} in any value.",
    "repeat": "Run each row so many times.",
    "expect": "What must hold: one expectation or a list of them.",
    "skip_unless": "What this host must have: one need or a list of them.",
    "time_limit": "Bound each row (exit 6).",
}

ON_FAILURE = ("continue", "stop")
