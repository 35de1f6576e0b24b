//! Chat templates as models ship them.

use consortium_inference::chat_template::{ChatTemplate, ChatTemplateError};
use consortium_protocol::wire::job::ChatMessage;
use serde_json::{Value, json};

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.into(), content: content.into() }
}

fn with(template: &Value) -> Result<Option<ChatTemplate>, ChatTemplateError> {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"chat_template": template, "bos_token": "<s>", "eos_token": {"content": "</s>"}});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    ChatTemplate::open(dir.path())
}

fn render(template: &str, messages: &[ChatMessage], prompt: bool) -> Result<String, ChatTemplateError> {
    with(&json!(template))?.unwrap().render(messages, prompt)
}

/// The template of Llama 2 chat models, as published.
const LLAMA2: &str = "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}";

/// The template of ChatML models.
const CHATML: &str = "{% for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n{%- endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

#[test]
fn published_templates() {
    let messages = [
        message("system", "Be brief."),
        message("user", " Hi "),
        message("assistant", "Hello"),
        message("user", "Bye"),
    ];
    assert_eq!(
        render(LLAMA2, &messages, true).unwrap(),
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi [/INST] Hello </s><s>[INST] Bye [/INST]"
    );
    assert_eq!(
        render(CHATML, &messages[..2], true).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(render(CHATML, &messages[..1], false).unwrap(), "<|im_start|>system\nBe brief.<|im_end|>\n");
}

#[test]
fn a_refusal_carries_the_words_of_the_template() {
    let error = render(LLAMA2, &[message("assistant", "x")], true).unwrap_err();
    let ChatTemplateError::Refused(words) = error else {
        panic!("{error:?}");
    };
    assert_eq!(words, "Conversation roles must alternate user/assistant/user/assistant/...");
}

#[test]
fn the_environment_is_that_of_transformers() {
    let messages = [message("user", "a<b> \"é\"\nü")];
    for (template, expected) in [
        ("{{ messages | tojson }}", r#"[{"role": "user", "content": "a<b> \"é\"\nü"}]"#),
        (
            "{{ {'a': [1, 2.5, none, true]} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1,\n    2.5,\n    null,\n    true\n  ]\n}",
        ),
        ("{%- for m in messages %}\n  {%- if loop.first %}{{ m.role.upper() }}{% endif %}\n{%- endfor %}", "USER"),
        ("{% if tools is none %}no{% endif %}", "no"),
        ("{% if unknown is defined %}x{% else %}y{% endif %}", "y"),
        ("{{ messages[0].content.split('\\n')[1] }}{{ ' x '.strip() }}{{ 'ab'.startswith('a') }}", "üxTrue"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{% for m in messages %}{% generation %}{{ m.role }}{%- endgeneration -%}  {% endfor %}", "user"),
        ("{% for x in [1,2,3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "1"),
        ("{{ messages[0]['missing'] }}", ""),
        ("{{ strftime_now('%%')|length }}", "1"),
    ] {
        assert_eq!(render(template, &messages, false).unwrap(), expected, "{template}");
    }
    let date = render("{{ strftime_now('%d %b %Y|%Y-%m-%d %H:%M:%S %A %B %y %-d') }}", &messages, false).unwrap();
    assert!(date.len() > 40 && date.contains(" 20"), "{date}");
    assert!(matches!(render("{{ strftime_now('%Q') }}", &messages, false), Err(ChatTemplateError::Render(_))));
}

#[test]
fn where_templates_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let user = [message("user", "x")];
    let found = || ChatTemplate::open(dir.path()).unwrap().map(|t| t.render(&user, true).unwrap());
    assert_eq!(found(), None);
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    write("tokenizer_config.json", json!({"bos_token": null}).to_string());
    assert_eq!(found(), None);
    let named = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ bos_token }}"}]);
    write("tokenizer_config.json", json!({"bos_token": "<s>", "chat_template": named}).to_string());
    assert_eq!(found().unwrap(), "D<s>");
    write("chat_template.json", json!({"chat_template": "J"}).to_string());
    assert_eq!(found().unwrap(), "J");
    write("chat_template.jinja", "F{{ bos_token }}".into());
    assert_eq!(found().unwrap(), "F<s>");
}

#[test]
fn bounds_and_errors() {
    let user = [message("user", "x")];
    assert!(matches!(with(&json!("{% for %}")), Err(ChatTemplateError::Syntax { .. })));
    assert!(matches!(with(&json!("x".repeat(300 << 10))), Err(ChatTemplateError::File { .. })));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    assert!(matches!(render(endless, &user, true), Err(ChatTemplateError::Limit(_))));
    let long = format!("{{% for a in range(9999) %}}{}{{% endfor %}}", "x".repeat(10_000));
    assert!(matches!(render(&long, &user, true), Err(ChatTemplateError::Limit(_))));
    assert!(matches!(render("{{ messages.nope() }}", &user, true), Err(ChatTemplateError::Render(_))));
}
