//! Scripts, verified by Bitcoin Core's interpreter (libbitcoinconsensus).

use bitcoin::{Transaction, TxOut, consensus};
use bitcoinconsensus::{Utxo, VERIFY_ALL_PRE_TAPROOT, VERIFY_TAPROOT, verify_with_flags};

use super::transaction::TransactionError;

/// Regtest has had every soft fork from its first block.
const FLAGS: u32 = VERIFY_ALL_PRE_TAPROOT | VERIFY_TAPROOT;

/// Runs the scripts of every input of `transaction`; `spent` holds the outputs that they spend, in order.
///
/// # Errors
/// Names the first input that fails.
pub(super) fn verify(transaction: &Transaction, spent: &[&TxOut]) -> Result<(), TransactionError> {
    let bytes = consensus::serialize(transaction);
    let mut outputs = Vec::with_capacity(spent.len());
    for output in spent {
        // Taproot signs every spent output, so the interpreter is given them all, by address; they outlive the calls.
        outputs.push(Utxo {
            script_pubkey: output.script_pubkey.as_bytes().as_ptr(),
            script_pubkey_len: u32::try_from(output.script_pubkey.len()).map_err(|_| TransactionError::Amount)?,
            value: i64::try_from(output.value.to_sat()).map_err(|_| TransactionError::Amount)?,
        });
    }
    for (index, output) in spent.iter().enumerate() {
        let script = output.script_pubkey.as_bytes();
        verify_with_flags(script, output.value.to_sat(), &bytes, Some(&outputs), index, FLAGS)
            .map_err(|_| TransactionError::Script { input: index })?;
    }
    Ok(())
}
