//! A model's text side: tokenizer and chat template, as the master needs them to turn a prompt into tokens and tokens
//! into text.

use std::sync::Arc;

use consortium_inference::chat_template::ChatTemplate;
use consortium_inference::model_dir::ModelDir;
use consortium_inference::tokenizer::TextTokenizer;
use consortium_protocol::wire::heartbeat::ModelRef;
use consortium_protocol::wire::job::{JobError, JobErrorCode, Prompt};

/// A model that this node can serve as master.
pub struct Serving {
    /// Its name and digest.
    pub model: ModelRef,
    /// Its files.
    pub dir: Arc<ModelDir>,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
}

impl Serving {
    /// Opens tokenizer and template.
    ///
    /// # Errors
    /// When the tokenizer is absent or damaged, or the template does not compile.
    pub fn open(model: ModelRef, dir: Arc<ModelDir>) -> anyhow::Result<Self> {
        let tokenizer = TextTokenizer::open(dir.path())?;
        let template = ChatTemplate::open(dir.path())?;
        Ok(Self { model, dir, tokenizer, template })
    }

    /// The prompt in tokens.
    ///
    /// # Errors
    /// `InvalidRequest` when there is no chat template, the template refuses the conversation, or a token id is not in
    /// the vocabulary.
    pub fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, JobError> {
        let invalid = |message: String, param: &str| JobError {
            code: JobErrorCode::InvalidRequest,
            message,
            param: Some(param.to_owned()),
        };
        let tokens = match prompt {
            Prompt::Chat(messages) => {
                let template = self.template.as_ref().ok_or_else(|| {
                    invalid(format!("model {} has no chat template; use /v1/completions", self.model.name), "messages")
                })?;
                let text = template.render(messages, true).map_err(|error| invalid(error.to_string(), "messages"))?;
                self.tokenizer.encode(&text, false).map_err(|error| invalid(error.to_string(), "messages"))?
            }
            Prompt::Text(text) => {
                self.tokenizer.encode(text, true).map_err(|error| invalid(error.to_string(), "prompt"))?
            }
            Prompt::Tokens(tokens) => {
                let size = self.dir.config().vocab_size;
                if let Some(id) = tokens.iter().find(|id| **id as usize >= size) {
                    return Err(invalid(format!("token id {id} is not in the vocabulary of {size}"), "prompt"));
                }
                tokens.clone()
            }
        };
        if tokens.is_empty() {
            return Err(invalid("the prompt is empty".to_owned(), "prompt"));
        }
        Ok(tokens)
    }
}
