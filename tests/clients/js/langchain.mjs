// LangChain.js over the AWS SDK's HTTP/2 handler, by its environment variables alone.
import { ChatBedrockConverse } from "@langchain/aws";
import { CLAUDE, PROMPT, run } from "./saying.mjs";

const chat = new ChatBedrockConverse({ model: CLAUDE, region: process.env.AWS_REGION, maxTokens: 64 });

await run({
  converse: async () => (await chat.invoke(PROMPT)).text,
  async converse_stream() {
    let text = "";
    for await (const chunk of await chat.stream(PROMPT)) text += chunk.text;
    return text;
  },
});
