//! What a stage writes down while it computes: the commitment, and the bytes that open it.

use consortium_inference::audit::grid::{CommitError, StageCommitter};
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::RootKey;
use consortium_protocol::wire::audit::{
    NOT_DRAWN, NumericClass, Opening, StageReceipt, block_digests, blocks_root, boundary_key, check_chain, grid_key,
};
use consortium_protocol::wire::pipeline::SessionOpen;

use super::spool::{Kept, Room, Spool};

/// The record of one session on one stage.
pub struct Record {
    order: Signed<SessionOpen>,
    stage: u16,
    class: NumericClass,
    committer: StageCommitter,
    opening: Opening,
    inputs: Vec<u8>,
    outputs: Vec<u8>,
    spool: Spool,
    room: Room,
}

/// Why rows cannot be written down.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// They are not of the shape that they should be.
    #[error(transparent)]
    Shape(#[from] CommitError),
    /// Sessions in progress fill the memory for openings.
    #[error("there is no memory left for what an audit would ask for")]
    NoRoom,
}

/// The rows of one step.
pub struct Rows<'a> {
    /// Their tokens.
    pub tokens: &'a [u32],
    /// What came in, f32 little-endian `[rows, width]`; none on the first stage.
    pub input: Option<&'a [u8]>,
    /// What came out, of the same shape. On the last stage, the hidden states before the final norm.
    pub output: &'a [u8],
    /// The token drawn after the last row.
    pub drawn: Option<u32>,
}

impl Record {
    /// An empty record of `stage` (its place in the route) of an order.
    pub fn new(order: Signed<SessionOpen>, stage: u16, class: NumericClass, width: u32, spool: &Spool) -> Self {
        let open = order.payload();
        let hop = &open.route[usize::from(stage)];
        let committer = StageCommitter::new(
            &boundary_key(open.job, open.attempt, stage),
            &boundary_key(open.job, open.attempt, stage + 1),
            &grid_key(open.job, open.attempt, &open.model, hop.range, class),
            width as usize,
        );
        Self {
            order,
            stage,
            class,
            committer,
            opening: Opening { tokens: Vec::new(), drawn: Vec::new(), width },
            inputs: Vec::new(),
            outputs: Vec::new(),
            spool: spool.clone(),
            room: spool.room(),
        }
    }

    fn is_last(&self) -> bool {
        usize::from(self.stage) + 1 == self.order.payload().route.len()
    }

    /// Adds the rows of one step, in their order.
    ///
    /// # Errors
    /// When the bytes are not those of as many rows, or there is no room for what would open them; the record is as
    /// before.
    pub fn add(&mut self, rows: &Rows<'_>) -> Result<(), RecordError> {
        let count = rows.tokens.len();
        let kept = rows.input.unwrap_or_default();
        // A stage signs for nothing that it could not show.
        if !self.room.grow((kept.len() + rows.output.len() + 8 * count) as u64) {
            return Err(RecordError::NoRoom);
        }
        let given: Vec<u8>;
        let taken_in = match rows.input {
            Some(input) => input,
            None => {
                given = rows.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
                &given
            }
        };
        if self.is_last() {
            let mut drawn = vec![NOT_DRAWN; count];
            if let (Some(last), Some(token)) = (drawn.last_mut(), rows.drawn) {
                *last = token;
            }
            let bytes: Vec<u8> = drawn.iter().flat_map(|token| token.to_le_bytes()).collect();
            self.committer.push(count, taken_in, rows.output, &bytes)?;
            self.opening.drawn.extend(drawn);
        } else {
            self.committer.push(count, taken_in, rows.output, rows.output)?;
        }
        self.opening.tokens.extend_from_slice(rows.tokens);
        self.inputs.extend_from_slice(kept);
        self.outputs.extend_from_slice(rows.output);
        Ok(())
    }

    /// Seals the record over the receipts of the stages before, and keeps what opens it.
    ///
    /// # Errors
    /// In words, when the receipts before are not what this stage can sign over.
    pub fn seal(self, key: &RootKey, chain: &[Signed<StageReceipt>]) -> Result<Signed<StageReceipt>, String> {
        let open = self.order.payload();
        if chain.len() != usize::from(self.stage) {
            return Err(format!("{} receipts came before that of stage {}", chain.len(), self.stage));
        }
        check_chain(&self.order, chain).map_err(|fault| fault.to_string())?;
        // The tokens come from the stage before, and no hash of its outputs covers them.
        if let Some(first) = chain.first() {
            let tokens: Vec<u8> = self.opening.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            let given = blocks_root(&block_digests(&boundary_key(open.job, open.attempt, 0), &tokens, 4));
            if given != first.payload().inputs {
                return Err("the tokens are not those that the first stage signs for".to_owned());
            }
        }
        let [inputs, outputs, grid] = self.committer.finish().roots();
        let positions = u32::try_from(self.opening.tokens.len()).unwrap_or(u32::MAX);
        if let Some(before) = chain.last().map(Signed::payload)
            && (before.positions, before.outputs) != (positions, inputs)
        {
            return Err("the stage before signs for something else than it sent".to_owned());
        }
        if positions == 0 {
            return Err("there is nothing to sign for".to_owned());
        }
        let receipt = StageReceipt {
            cluster: open.cluster,
            term: open.term,
            job: open.job,
            attempt: open.attempt,
            order: self.order.digest(),
            model: open.model,
            range: open.route[usize::from(self.stage)].range,
            stage: self.stage,
            class: self.class,
            positions,
            inputs,
            outputs,
            grid,
            upstream: chain.last().map(Signed::digest),
            challenge: open.challenge,
        };
        let receipt = Signed::sign(key, receipt);
        self.spool.keep(Kept {
            receipt: receipt.clone(),
            opening: self.opening,
            inputs: self.inputs,
            outputs: self.outputs,
            _room: self.room,
        });
        Ok(receipt)
    }
}
