"""`python -m loraexp`, `torchrun -m loraexp`, `accelerate launch -m loraexp`: the command
`loraexp`."""

from loraexp.cli.main import entry

entry()
