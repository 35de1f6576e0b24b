//! The finished model in the layout of Hugging Face: weights, configuration, tokenizer.

use std::path::Path;

use candle_core::DType;
use safetensors::tensor::{Dtype, TensorView};

use crate::error::TrainError;
use crate::model::Llama;
use crate::tensor_file::write_atomically;
use crate::tokenizer::Tokenizer;

/// Files that a reader of the model needs.
pub const MODEL_FILES: [&str; 5] =
    ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"];

/// Writes weights (bfloat16), configuration and tokenizer to `directory`; returns their size in bytes.
///
/// # Errors
/// [`TrainError::Io`] if the directory cannot be written.
pub fn export(model: &Llama, tokenizer: &Tokenizer, directory: &Path) -> Result<u64, TrainError> {
    std::fs::create_dir_all(directory).map_err(TrainError::io(directory))?;
    let files = [
        weights(model)?,
        json(&model.config())?,
        tokenizer.to_json()?.into_bytes(),
        json(&Tokenizer::config(model.config().max_position_embeddings))?,
        json(&Tokenizer::generation_config())?,
    ];
    for (name, data) in MODEL_FILES.iter().zip(&files) {
        write_atomically(&directory.join(name), data)?;
    }
    Ok(files.iter().map(|f| f.len() as u64).sum())
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, TrainError> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}

fn weights(model: &Llama) -> Result<Vec<u8>, TrainError> {
    let mut tensors = Vec::new();
    for (name, var) in model.names().iter().zip(model.vars()) {
        // Rounded as candle rounds, and written in the byte order that safetensors asks for.
        let rounded = var.to_dtype(DType::BF16)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = rounded.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
        tensors.push((name.clone(), var.dims().to_vec(), bytes));
    }
    let refuse = |e: safetensors::SafeTensorError| TrainError::Tensor(candle_core::Error::Msg(e.to_string()));
    let views = tensors
        .iter()
        .map(|(name, shape, data)| Ok((name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), data)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(refuse)?;
    let format = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(format)).map_err(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LlamaConfig;

    #[test]
    fn exported_files_can_be_read_back() {
        let tokenizer = Tokenizer::train(1, 100, 300).unwrap();
        let config = LlamaConfig { vocab_size: 300, hidden_size: 16, num_hidden_layers: 1, ..LlamaConfig::tiny() };
        let model = Llama::new(&config, 1).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let bytes = export(&model, &tokenizer, directory.path()).unwrap();
        let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
        assert_eq!(bytes, MODEL_FILES.iter().map(|n| read(n).len() as u64).sum::<u64>());
        let written: LlamaConfig = serde_json::from_slice(&read("config.json")).unwrap();
        assert_eq!(written, config);
        let tensors =
            candle_core::safetensors::load(directory.path().join(MODEL_FILES[0]), &candle_core::Device::Cpu).unwrap();
        assert_eq!(tensors.len(), config.parameters().len());
        for (name, shape) in config.parameters() {
            assert_eq!((tensors[&name].dims(), tensors[&name].dtype()), (&shape[..], DType::BF16));
        }
        let ours = model.vars()[1].to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>();
        let theirs = tensors["model.layers.0.input_layernorm.weight"].to_dtype(DType::F32).unwrap().to_vec1::<f32>();
        assert_eq!(ours.unwrap(), theirs.unwrap());
        let again = Tokenizer::load(&directory.path().join("tokenizer.json")).unwrap();
        assert_eq!(again.encode("A fox.").unwrap(), tokenizer.encode("A fox.").unwrap());
    }

    #[test]
    fn the_template_writes_what_the_model_was_trained_on() {
        let template = crate::tokenizer::CHAT_TEMPLATE;
        for special in ["bos_token", "add_generation_prompt", "<|assistant|>", "<|end|>"] {
            assert!(template.contains(special));
        }
        let config = Tokenizer::config(1024);
        assert_eq!(config["chat_template"], template);
        assert_eq!(config["bos_token"], "<|start|>");
    }
}
