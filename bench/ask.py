"""What asking costs and how well it keeps to limits and to its log, measured with datagen's writer against a local server.

1. Rows per CPU second of the asking process, against the plain loop of the OpenAI SDK on the same server (requests only: no limits,
   log, retries or checks), in turns in one run.
2. Share of an allowed rate that is used, from the first request to the last answer, and the share of 429s among all requests.
   Allowed is what a full bucket holds plus what it was filled with; with headers as OpenAI sends them, and with none.
3. Kill -9 at random moments while it asks, each followed by a start on the same log. *Lost*: rows without a line at the end. *Doubled*:
   rows with two lines. *Paid again*: what the server made beyond one answer per row, also for who had hung up; *under way* are
   those of them that had no line in the log when their process was killed (at most `concurrency` per kill), *paid twice* all others.

    python -m bench.ask [seconds per limit]
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bench._llm_server import running

ROUNDS, ROWS, SDK_ROWS, CONCURRENCY = 3, 6000, 2000, 16
KILLS, KILL_ROWS = 20, 4000
LABELS = ("negative", "positive")
TEXT = json.dumps({"instruction": "Please say if this is negative or positive.", "answer": "positive"})


def write(url: str, work: Path, rows: int, concurrency: int) -> None:
    """The child that asks; prints its CPU seconds of asking and the rows that got an instruction."""
    from services.datagen.filters import Candidate
    from services.datagen.generate import Row, Writer
    from understudy.belt.contracts import Progress
    from understudy.llm.providers import Provider
    from understudy.recipe import Generator

    def report(done: int, total: int, figures: dict[str, float]) -> Progress:
        return Progress(run="r", station="datagen", step="s", done=done, total=total, figures=figures)

    generator = Generator(kind="llm", model="m", concurrency=concurrency, budget_usd=1000)
    asked = [Row(f"{n:06}", Candidate(n, f"key{n}", question(n), "positive", "positive")) for n in range(rows)]
    writer = Writer(generator, Provider(url, None), LABELS, 17, work / "written.jsonl")
    before, steps = time.process_time(), writer.write(asked, report)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            print(time.process_time() - before, sum(line.instruction is not None for line in end.value))
            return


def plain(url: str, rows: int, concurrency: int) -> None:
    """The child that loops over the SDK; prints like `write`."""
    import openai

    from services.datagen import instructions
    from services.datagen.filters import Candidate

    turns = instructions.ask(Candidate(0, "key", question(0), "positive", "positive"), LABELS, "0", 17)
    messages: Any = [turn.model_dump() for turn in turns]
    schema: Any = instructions.schema(LABELS)

    async def run() -> None:
        client, left = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0), iter(range(rows))

        async def worker() -> None:
            for number in left:
                answer = await client.chat.completions.create(
                    model="m", messages=messages, max_tokens=256, temperature=0.7, seed=number, **schema
                )
                assert answer.choices[0].message.content

        await asyncio.gather(*(worker() for _ in range(concurrency)))

    before = time.process_time()
    asyncio.run(run())
    print(time.process_time() - before, rows)


def question(number: int) -> str:
    """A text of some size between a remark and a paragraph, the same for the same number."""
    return f"Row {number:06}: " + "what a thing " * random.Random(number).randint(4, 60)


def server(**settings: Any) -> AbstractContextManager[str]:
    """The URL of a server that answers with `TEXT`."""
    return running(text=TEXT, **settings)


def figures(url: str) -> dict[str, Any]:
    """What the server counted."""
    with urllib.request.urlopen(f"{url}/figures") as answer:
        document: dict[str, Any] = json.load(answer)
    return document


def child(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.ask", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[float, int]:
    """CPU seconds and rows of a child."""
    seconds, rows = process.communicate()[0].split()
    assert process.returncode == 0
    return float(seconds), int(rows)


def client() -> None:
    """Print what a row costs."""
    asking, sdk = [0.0, 0], [0.0, 0]
    with server() as url:
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as work:
                for sums, process in (
                    (asking, child("write", f"{url}/v1", work, ROWS, CONCURRENCY)),
                    (sdk, child("plain", f"{url}/v1", SDK_ROWS, CONCURRENCY)),
                ):
                    seconds, rows = ended(process)
                    sums[0] += seconds
                    sums[1] += rows
    ours, theirs = asking[1] / asking[0], sdk[1] / sdk[0]
    assert asking[1] == ROUNDS * ROWS
    print(
        f"client: {ours:,.0f} rows per CPU second; the plain SDK loop {theirs:,.0f}: {ours / theirs:.1f}x", flush=True
    )


def limits(seconds: float) -> None:
    """Print how much of what is allowed is used."""
    tokens = 60 * 40_000
    cases: list[tuple[str, float, dict[str, Any]]] = [
        ("6,000 requests a minute, headers", 100, {"requests_per_minute": 6000}),
        ("2.4M tokens a minute, headers", 40_000 / 600, {"tokens_per_minute": tokens}),
        ("both, headers", 40_000 / 600, {"requests_per_minute": 6000, "tokens_per_minute": tokens}),
        ("6,000 requests a minute, only 429s", 100, {"requests_per_minute": 6000, "headers": False}),
    ]
    for name, rate, settings in cases:
        with server(latency=0.1, burst_seconds=2, **settings) as url, tempfile.TemporaryDirectory() as work:
            ended(child("write", f"{url}/v1", work, int(rate * seconds), 32))
            found = figures(url)
        shares = ", ".join(f"{share:.1%} of the {what}" for what, share in found["used"].items())
        print(f"limit: {name}: {shares} used, {found['refused']} of {found['asked']} were 429 ", end="")
        print(f"({found['refused'] / found['asked']:.2%})", flush=True)


def kills() -> None:
    """Print what became of rows when their process was killed."""
    dice, under_way, killed = random.Random(), 0, 0
    with server(latency=0.1) as url, tempfile.TemporaryDirectory() as work:
        log, arguments = Path(work) / "written.jsonl", ("write", f"{url}/v1", work, KILL_ROWS, CONCURRENCY)
        paid: Counter[int] = Counter()
        excused: Counter[int] = Counter()
        """Row -> answers that came when it was under way at a kill."""
        while killed < KILLS:
            process = child(*arguments)
            while _answers(url) == paid and process.poll() is None:
                time.sleep(0.02)  # it has only begun
            time.sleep(dice.uniform(0.0, 1.2))
            assert process.poll() is None, "it ended before it was killed: more rows are needed"
            process.kill()
            process.wait()
            killed += 1
            time.sleep(0.2)
            have, after = _lines(log), _answers(url)
            for row in after:
                if row not in have:
                    under_way += after[row] - paid[row]
                    excused[row] += after[row] - paid[row]
            paid = after
        ended(child(*arguments))
        have, answers = _lines(log), _answers(url)
    again = sum(count - 1 for count in answers.values())
    unexcused = sum(max(0, answers[row] - 1 - excused[row]) for row in answers)
    print(
        f"kill -9: {killed} times over {KILL_ROWS} rows: {sum(row not in have for row in range(KILL_ROWS))} lost, "
        f"{sum(count > 1 for count in have.values())} doubled, {again} paid again of which {again - unexcused} were under way "
        f"({CONCURRENCY} at once, {KILLS * CONCURRENCY} at most), {unexcused} paid twice"
    )


def _lines(log: Path) -> Counter[int]:
    """Rows by whole lines of the log."""
    content = log.read_bytes() if log.exists() else b""
    ids = (json.loads(line)["id"] for line in content[: content.rfind(b"\n") + 1].splitlines())
    return Counter(int(one) for one in ids if one.isdecimal())  # the others say what a row may cost


def _answers(url: str) -> Counter[int]:
    """Rows by answers the server sent."""
    return Counter({int(json.loads(text)["text"][4:10]): n for text, n in figures(url)["answered"].items()})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", url, work, rows, concurrency]:
            write(url, Path(work), int(rows), int(concurrency))
        case ["plain", url, rows, concurrency]:
            plain(url, int(rows), int(concurrency))
        case seconds:
            client()
            limits(float(seconds[0]) if seconds else 60.0)
            kills()
