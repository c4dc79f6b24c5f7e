"""OpenAI's own client against ``python -m mlx_higgs.server``: a file, a stream, a refusal.

    python examples/openai_client.py "Hello friend, please turn the page."

The server's address is $OPENAI_BASE_URL, its key $OPENAI_API_KEY, if it has one.
"""

from __future__ import annotations

import os
import sys

from openai import BadRequestError, OpenAI


def main(text: str) -> None:
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    for voice in client.get("/audio/voices", cast_to=object)["voices"]:  # pyright: ignore
        print("voice:", voice["id"])

    # Whole, when it is done; the same seed makes the same speech.
    speech = client.audio.speech.create(
        model="tts-1", voice="alloy", input=text, response_format="wav", extra_body={"seed": 7}
    )
    speech.write_to_file("speech.wav")

    # While it is made: 16-bit samples, 24,000 a second.
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=text, response_format="pcm", extra_body={"seed": 7}
    ) as stream:
        rate = int(stream.headers["X-Sample-Rate"])
        for chunk in stream.iter_bytes():
            print(f"{len(chunk) / 2 / rate:.2f} s more")

    # What cannot be done is said in a sentence.
    try:
        client.audio.speech.create(model="tts-1", voice="nobody", input=text)
    except BadRequestError as error:
        print("refused:", error.body["message"])  # pyright: ignore


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "Hello friend, please turn the page.")
