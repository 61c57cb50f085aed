"""Conversations about an image as tokens: which of them are read, and which are learned.

Labels are made from lists of tokens, a question and an answer at a time, so that none is found by searching for a
separator in the text afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from diffclip.errors import UserError
from diffclip.vlm.language import IMAGE, image_token

Template = Literal["chat", "vicuna", "plain"]

UNLEARNED = -100
"""The label of a token that no loss is of, as PyTorch's cross-entropy has it."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VICUNA = (
    "{%- for m in messages -%}"
    "{%- if loop.first and m['role'] != 'system' -%}{{ '" + SYSTEM.replace("'", "\\'") + "' }}{%- endif -%}"
    "{%- if m['role'] == 'system' -%}{{ m['content'] }}"
    "{%- elif m['role'] == 'user' -%}{{ ' USER: ' + m['content'] }}"
    "{%- else -%}{{ ' ASSISTANT: ' + m['content'] + eos_token }}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ ' ASSISTANT:' }}{%- endif -%}"
)
"""LLaVA's own format of stage 2, which TinyLLaVA uses for Qwen2.5 too."""
PLAIN = "{%- for m in messages -%}{{ m['content'] + (eos_token if m['role'] == 'assistant' else '\n') }}{%- endfor -%}"
"""A question, the end of its line, the answer, its end: half the tokens of a conversation about a drawn scene."""
FLATTEN = (
    "{%- set flat = namespace(messages=[]) -%}{%- for m in messages -%}{%- set text -%}"
    "{%- if m['content'] is string -%}{{ m['content'] }}{%- else -%}{%- for part in m['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '" + IMAGE + "\\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endset -%}"
    "{%- set flat.messages = flat.messages + [{'role': m['role'], 'content': text}] -%}{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
"""Before a template: messages whose content is a list of texts and images, as transformers' processors give them."""


@dataclass(frozen=True)
class Turn:
    """A question and its answer; of a caption in stage 1 the question is not used."""

    question: str
    answer: str


@dataclass(frozen=True)
class Tokens:
    """What the model reads of a conversation, and what it learns: a label for each token, or `UNLEARNED`."""

    ids: list[int]
    labels: list[int]

    @property
    def learned(self) -> int:
        return sum(label != UNLEARNED for label in self.labels)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Give a tokenizer the image token and the template of conversations that training and answering share.

    Raises UserError for `chat` where the tokenizer has no template, or one that does not end answers.
    """
    image_token(tokenizer)
    if template != "chat":
        tokenizer.chat_template = {"vicuna": VICUNA, "plain": PLAIN}[template]
    if tokenizer.chat_template is None:
        raise UserError(
            'this tokenizer has no chat template: set template = "vicuna", or take the instruction-tuned language model'
        )
    if not tokenizer.chat_template.startswith(FLATTEN):
        tokenizer.chat_template = FLATTEN + tokenizer.chat_template
    if not conversation(tokenizer, [Turn("a", "b"), Turn("c", "d")], image_tokens=0).learned:
        raise UserError(
            "the chat template of this tokenizer ends no answer with its end-of-text token: nothing to learn"
        )


def conversation(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, image_tokens: int) -> Tokens:
    """The tokens of a conversation by the tokenizer's template, the image before the first question.

    image_tokens: how many tokens the image has; 0 for a conversation without one. Learned are each answer and the
    token that ends it. Raises UserError for a template in which a turn changes what came before it.
    """
    ids: list[int] = []
    labels: list[int] = []
    messages: list[dict[str, str]] = []
    done = ""
    for number, turn in enumerate(turns):
        image = f"{IMAGE}\n" if image_tokens and number == 0 else ""
        messages.append({"role": "user", "content": image + turn.question})
        asked = _rendered(tokenizer, messages, asking=True)
        messages.append({"role": "assistant", "content": turn.answer})
        answered = _rendered(tokenizer, messages, asking=False)
        if not (asked.startswith(done) and answered.startswith(asked)):
            raise UserError("the chat template of this tokenizer rewrites earlier turns: it cannot be trained on")
        question = _ids(tokenizer, asked[len(done) :], image_tokens)
        answer = _ids(tokenizer, answered[len(asked) :], 0)
        learned = answer.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in answer else 0
        ids += question + answer
        labels += [UNLEARNED] * len(question) + answer[:learned] + [UNLEARNED] * (len(answer) - learned)
        done = answered
    return Tokens(ids, labels)


def caption(tokenizer: PreTrainedTokenizerBase, text: str, *, image_tokens: int) -> Tokens:
    """Stage 1's `<image>CAPTION` and a line end, without a question; learned is what follows the image."""
    image = [image_token(tokenizer)] * image_tokens
    learned = _ids(tokenizer, f"{text}\n", 0)
    return Tokens(image + learned, [UNLEARNED] * len(image) + learned)


def prompt(tokenizer: PreTrainedTokenizerBase, question: str, *, image_tokens: int) -> list[int]:
    """The tokens after which the answer to a question about an image begins."""
    image = f"{IMAGE}\n" if image_tokens else ""
    text = _rendered(tokenizer, [{"role": "user", "content": image + question}], asking=True)
    return _ids(tokenizer, text, image_tokens)


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, asking: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asking))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, image_tokens: int) -> list[int]:
    """The tokens of a text, its image token as often as the image has tokens."""
    image = image_token(tokenizer)
    found = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [own for token in found for own in ([token] * image_tokens if token == image else [token])]
