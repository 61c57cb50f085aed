"""A language model of a few million weights that knows nothing yet: a control for drawn scenes, trained from scratch.

It tells an encoder's part from that of a large language model, and costs a hundredth of one.
"""

from __future__ import annotations

from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from diffclip.data.scenes import SceneSource
from diffclip.vlm.scene_questions import turns_about

NAME = "scratch"
WIDTH, LAYERS, HEADS = 256, 4, 4
LEARNED_FROM = 2000  # scenes whose captions and questions make the vocabulary
CHAT = (
    "{%- for m in messages -%}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{%- if m['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def build(seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, its weights drawn from the seed, and a tokenizer whose vocabulary is always that of scenes."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>", chat_template=CHAT
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=8 * WIDTH // 3,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model.eval(), tokenizer


def _texts() -> list[str]:
    source = SceneSource("train", size=8)
    texts = []
    for index in range(LEARNED_FROM):
        turns = turns_about(source.scene(index), Random(f"vocabulary/{index}"))
        texts += [text for turn in turns for text in (turn.question, turn.answer)]
    return texts
