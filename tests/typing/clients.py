"""What `cache_client` gives back, as a type checker sees it: mypy reads this, nothing here is called."""

from __future__ import annotations

from typing import assert_type

from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncOpenAI, AzureOpenAI, OpenAI
from openai.types.chat import ChatCompletion

from codomyrmex_cache.integrations import cache_client


def clients() -> None:
    assert_type(cache_client(OpenAI()), OpenAI)
    assert_type(cache_client(AsyncOpenAI(), namespace="llm", ttl="7d", backend="file_based", samples=3), AsyncOpenAI)
    assert_type(cache_client(AzureOpenAI()).with_options(timeout=5.0), AzureOpenAI)
    assert_type(cache_client(Anthropic()), Anthropic)
    assert_type(cache_client(AsyncAnthropic()), AsyncAnthropic)
    assert_type(
        cache_client(OpenAI()).chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}]),
        ChatCompletion,
    )
