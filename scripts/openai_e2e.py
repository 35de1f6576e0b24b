"""The official OpenAI client against a running swarm: simnet up 8 --exec 'python scripts/openai_e2e.py'."""

import os

import openai

MODEL = os.environ["CONSORTIUM_MODEL"]
MESSAGES = [{"role": "user", "content": "Tell me a story."}]


def client(variable: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=os.environ[variable], api_key=os.environ["CONSORTIUM_API_KEY"], timeout=120)


def plain(api: openai.OpenAI, **options) -> str:
    answer = api.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=24, **options)
    choice = answer.choices[0]
    assert choice.message.role == "assistant", answer
    assert choice.finish_reason in ("stop", "length"), answer
    assert 0 < answer.usage.completion_tokens <= 24, answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens, answer
    return choice.message.content


def streamed(api: openai.OpenAI, **options) -> str:
    text, finish, usage = "", None, None
    with api.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=24, stream=True, stream_options={"include_usage": True}, **options
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
    assert finish in ("stop", "length"), finish
    assert usage is not None and usage.completion_tokens > 0, usage
    return text


def refused(error: type, call) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"not refused with {error.__name__}")


def main() -> None:
    gateway, master = client("CONSORTIUM_GATEWAY_BASE"), client("CONSORTIUM_API_BASE")
    assert MODEL in [model.id for model in gateway.models.list()]

    for options in ({"temperature": 0}, {"temperature": 0.9, "top_p": 0.95, "seed": 42}):
        answers = [ask(api, **options) for api in (gateway, master) for ask in (plain, streamed)]
        assert answers[0].strip() and len(set(answers)) == 1, (options, answers)

    whole = plain(gateway, temperature=0)
    middle = whole[len(whole) // 2 :].strip()[:3]
    if middle:
        assert plain(gateway, temperature=0, stop=[middle]) == whole.split(middle)[0]

    text = gateway.completions.create(model=MODEL, prompt="Once", max_tokens=8, temperature=0)
    assert text.choices[0].text and text.usage.completion_tokens > 0, text

    create = gateway.chat.completions.create
    refused(openai.NotFoundError, lambda: create(model="no-such-model", messages=MESSAGES))
    refused(openai.BadRequestError, lambda: create(model=MODEL, messages=MESSAGES, temperature=9))
    refused(openai.BadRequestError, lambda: create(model=MODEL, messages=MESSAGES, extra_body={"no_such_field": 1}))
    print(f"openai {openai.__version__}: answers, streams, seeds, stops and refusals as expected")


if __name__ == "__main__":
    main()
