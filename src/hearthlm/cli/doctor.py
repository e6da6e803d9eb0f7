"""`hearthlm doctor`: what this machine offers, and what is missing."""

from __future__ import annotations

from dataclasses import asdict

import click

import hearthlm
from hearthlm.cli.group import cli
from hearthlm.cli.options import threads_option
from hearthlm.cli.terminal import columns, print_json, short_number


@cli.command()
@click.option("--measure", is_flag=True, help="Measure for two seconds what the kernels reach.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@threads_option
def doctor(measure: bool, as_json: bool, num_threads: int | None) -> None:
    """Say which kernels are used and why, what this machine offers, and which optional libraries are there.

    \b
    hearthlm doctor
    hearthlm doctor --measure --threads 4 --json
    """
    machine = hearthlm.inspect_machine()
    limits = hearthlm.measure_machine(num_threads) if measure else None
    if as_json:
        print_json(machine.to_json() | {"limits": None if limits is None else asdict(limits)})
        return
    cpus = f"{len(machine.usable_cpus)} of {machine.num_cpus}"
    if machine.cpu_quota is not None:
        cpus += f", within a container's limit of {machine.cpu_quota:g}"
    memory = f"{short_number(machine.free_memory_bytes)}B free"
    if machine.total_memory_bytes is not None:
        memory += f" of {short_number(machine.total_memory_bytes)}B"
    lines = [
        ("hearthlm", f"{machine.version} on {machine.python}, {machine.platform}"),
        ("CPU", machine.cpu),
        ("features", " ".join(machine.cpu_features) or "not known"),
        ("kernels", f"{machine.kernels}: {machine.kernels_reason} (of {', '.join(machine.available_kernels)})"),
        ("CPUs", f"{cpus}; {machine.num_threads} threads by default"),
        ("memory", memory),
    ]
    for extra, libraries in machine.extras.items():
        missing = [name for name, version in libraries.items() if version is None]
        if missing:
            lines.append((extra, f'no {", ".join(missing)}: pip install "hearthlm[{extra}]"'))
        else:
            lines.append((extra, ", ".join(f"{name} {version}" for name, version in libraries.items())))
    if limits is not None:
        lines.append(("reads", f"{limits.read_gb_per_s:.1f} GB/s of weights, with {limits.num_threads} threads"))
        lines.append(("multiplies", f"{limits.int8_tops:.2f} int8 TOPS, with {limits.num_threads} threads"))
    click.echo(columns(lines))
