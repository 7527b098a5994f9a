"""The character model on the beginnings of its texts, as a program: for devices and processes of a test's own."""

import sys

from experiments import char_lm, harness
from tests.experiments.test_char_lm import beginnings

if __name__ == "__main__":
    char_lm.standard_library = beginnings
    char_lm.PROMPTS = char_lm.PROMPTS[:1]
    char_lm.announce = lambda *_: None  # what comes before training
    harness.launch(char_lm.main, char_lm.Config, char_lm.__doc__, sys.argv[1:])
