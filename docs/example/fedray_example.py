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
        answers = await exchange.ask({plan.senders[0]: exchange.open_rows()}, "answer")
        answer = answers.get(plan.senders[0]) or await exchange.alone()
        return exchange.close(replace(answer, senders=tuple(answers)))


FIRST = Protocol(settings=First, run=run)
LINEAR = FuserKind("fedray_example_torch:Linear", operators=("concat",))  # imported when one is used
HALF = CodecKind("fedray_example_torch:HALF")
