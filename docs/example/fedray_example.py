"""A protocol, a fuser and a codec; what needs torch lies in a module of its own, imported when it is used."""

from dataclasses import dataclass, field, replace

from fedray.methods.method import ProtocolSettings
from fedray.methods.parts import CodecKind, FuserKind
from fedray.protocols.exchange import Exchange
from fedray.protocols.protocol import Protocol


@dataclass(frozen=True)
class First(ProtocolSettings):
    name: str = field(default="first", init=False)


async def run(request, plan, group):  # what the first sender answers, or else the receiver
    async with Exchange(request, plan, group) as exchange:
        own, answers = await exchange.alone(), await exchange.ask({plan.senders[0]: exchange.open_rows()}, "answer")
        rows = next((answer.rows for answer in answers.values()), own.rows)
        return exchange.close(replace(own, rows=rows, senders=tuple(answers)))


FIRST = Protocol(settings=First, run=run)
LINEAR = FuserKind("fedray_example_torch:Linear", operators=("concat",))
HALF = CodecKind("fedray_example_torch:HALF")
