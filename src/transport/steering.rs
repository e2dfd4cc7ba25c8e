//! Which shard owns a message: the rule, and the same rule as a program for the kernel. No system calls.

/// The slot's place in every message from a device.
pub(super) const SLOT_AT: u8 = 1;

/// The shard that owns a message, by its slot; `None` if it is too short to have one.
///
/// # Panics
/// If `shards` is zero.
pub fn shard_of(message: &[u8], shards: usize) -> Option<usize> {
    message.get(usize::from(SLOT_AT)).map(|slot| usize::from(*slot) % shards)
}

/// One classic BPF instruction, `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) if_true: u8,
    pub(super) if_false: u8,
    pub(super) operand: u32,
}

const LOAD_LENGTH: u16 = 0x80; // BPF_LD | BPF_W | BPF_LEN
const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const MODULO: u16 = 0x94; // BPF_ALU | BPF_MOD | BPF_K
const RETURN_RESULT: u16 = 0x16; // BPF_RET | BPF_A
const RETURN_VALUE: u16 = 0x06; // BPF_RET | BPF_K

/// The steering program: the index of a socket in the order of binding. Offset 0 is the first payload byte.
///
/// A failing load would end the program with 0 by itself; the length is tested so that this is a decision: a
/// datagram without a slot goes to shard 0, which drops and counts it.
pub(super) fn program(shards: usize) -> [Instruction; 6] {
    let shards = u32::try_from(shards).unwrap_or(1).max(1);
    let slot_at = u32::from(SLOT_AT);
    let plain = |code, operand| Instruction { code, if_true: 0, if_false: 0, operand };
    [
        plain(LOAD_LENGTH, 0),
        Instruction { code: JUMP_AT_LEAST, if_true: 0, if_false: 3, operand: slot_at + 1 },
        plain(LOAD_BYTE, slot_at),
        plain(MODULO, shards),
        plain(RETURN_RESULT, 0),
        plain(RETURN_VALUE, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel does.
    fn run(program: &[Instruction], payload: &[u8]) -> u32 {
        let mut result = 0u32;
        let mut at = 0;
        loop {
            let step = program[at];
            at += 1;
            match step.code {
                LOAD_LENGTH => result = u32::try_from(payload.len()).unwrap(),
                LOAD_BYTE => match payload.get(step.operand as usize) {
                    Some(byte) => result = u32::from(*byte),
                    None => return 0,
                },
                JUMP_AT_LEAST if result >= step.operand => at += usize::from(step.if_true),
                JUMP_AT_LEAST => at += usize::from(step.if_false),
                MODULO => result %= step.operand,
                RETURN_RESULT => return result,
                RETURN_VALUE => return step.operand,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_and_the_rule_agree() {
        for shards in [1, 2, 3, 7, 64, 256] {
            for slot in 0..=255u8 {
                let message = [9, slot, 1];
                let expected = shard_of(&message, shards).unwrap();
                assert_eq!(run(&program(shards), &message) as usize, expected);
            }
        }
    }

    #[test]
    fn short_messages_have_no_owner() {
        for short in [&[][..], &[5]] {
            assert_eq!(shard_of(short, 3), None);
            assert_eq!(run(&program(3), short), 0);
        }
    }
}
