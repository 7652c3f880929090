"""The small language of the configuration templates: @if, @else, @for, @end and {name}."""
import re

from .machine import Broken

TOKEN = re.compile(r"\{([a-z_0-9]+)\}")

# Modes that have the sections of another mode too.
BELOW = {"dead": "policy", "access-log": "policy", "rest": "policy", "growth": "policy", "reload": "policy"}

# What a scenario may set: how many more upstreams, routes before the one that matches, whether the rate limit has a key,
# and numbers that change from one reload to the next.
COUNTS = dict(upstreams=0, routes=0, keyed=0, stamp=5, stamp_all=5)


def parse(text):
    """Nested lists: a line is a string, a block is (head, words, lines, lines after @else, number of its first line)."""
    top = []
    stack, into = [], top
    for number, line in enumerate(text.splitlines(), 1):
        w = line.split()
        head = w[0] if w else ""
        if head in ("@if", "@for"):
            if not w[1:] or head == "@for" and (len(w) != 2 or w[1] not in COUNTS):
                raise Broken(f"line {number}: @if takes modes or counts, @for one of {', '.join(COUNTS)}")
            block = (head, w[1:], [], [], number)
            into.append(block)
            stack.append((block, into))
            into = block[2]
        elif head in ("@else", "@end"):
            if not stack or head == "@else" and (stack[-1][0][0] != "@if" or into is stack[-1][0][3]):
                raise Broken(f"line {number}: {head} without its @if")
            if head == "@else":
                into = stack[-1][0][3]
            else:
                into = stack.pop()[1]
        else:
            into.append(line)
    if stack:
        raise Broken(f"line {stack[-1][0][4]}: {stack[-1][0][0]} without its @end")
    return top


def fill(text, vals):
    """{name} for the names that are known; other braces are left alone."""
    return TOKEN.sub(lambda m: str(vals.get(m.group(1), m.group(0))), text)


def render(text, vals, mode):
    """Lines between `@if A B` and `@else` or `@end` stay where the mode or a count is one of the words and not 0; those between
    `@for COUNT` and `@end` come COUNT times, with {n} from 1."""
    modes = {mode, BELOW.get(mode, mode)}
    out = []

    def emit(nodes, vals):
        for node in nodes:
            if isinstance(node, str):
                out.append(fill(node, vals))
                continue
            head, words, then, other, _ = node
            if head == "@for":
                for n in range(1, vals[words[0]] + 1):
                    emit(then, {**vals, "n": n})
            else:
                emit(then if any(w in modes or w in COUNTS and vals[w] for w in words) else other, vals)

    emit(parse(text), {**COUNTS, **vals})
    return "\n".join(out) + "\n"
