//! Which shard owns a message: the rule, and the same rule as a program for the kernel. No system calls.

/// The kind's and the slot's place in every message from a device.
const KIND_AT: u32 = 0;
pub(super) const SLOT_AT: u8 = 1;

/// One classic BPF instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) if_true: u8,
    pub(super) if_false: u8,
    pub(super) operand: u32,
}

impl Instruction {
    /// As the kernel takes it.
    pub(super) fn filter(self) -> libc::sock_filter {
        libc::sock_filter { code: self.code, jt: self.if_true, jf: self.if_false, k: self.operand }
    }
}

const LOAD_LENGTH: u16 = 0x80; // BPF_LD | BPF_W | BPF_LEN
const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_IF: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const MODULO: u16 = 0x94; // BPF_ALU | BPF_MOD | BPF_K
const ADD: u16 = 0x04; // BPF_ALU | BPF_ADD | BPF_K
const PUT_ASIDE: u16 = 0x07; // BPF_MISC | BPF_TAX
const TAKE_BACK: u16 = 0x87; // BPF_MISC | BPF_TXA
const RETURN_RESULT: u16 = 0x16; // BPF_RET | BPF_A
const RETURN_VALUE: u16 = 0x06; // BPF_RET | BPF_K

/// The steering program: the index of a socket in the order of binding, first one for each shard, then each shard's
/// socket for hellos. Offset 0 is the first payload byte.
///
/// A failing load would end the program with 0 by itself; the length is tested so that this is a decision: a
/// datagram without a slot goes to shard 0, which drops and counts it.
pub(super) fn program(shards: usize, hello: u8) -> [Instruction; 13] {
    let shards = u32::try_from(shards).unwrap_or(1).max(1);
    let slot_at = u32::from(SLOT_AT);
    let plain = |code, operand| Instruction { code, if_true: 0, if_false: 0, operand };
    [
        plain(LOAD_LENGTH, 0),
        Instruction { code: JUMP_AT_LEAST, if_true: 0, if_false: 10, operand: slot_at + 1 },
        plain(LOAD_BYTE, slot_at),
        plain(MODULO, shards),
        plain(PUT_ASIDE, 0),
        plain(LOAD_BYTE, KIND_AT),
        Instruction { code: JUMP_IF, if_true: 2, if_false: 0, operand: u32::from(hello) },
        plain(TAKE_BACK, 0),
        plain(RETURN_RESULT, 0),
        plain(TAKE_BACK, 0),
        plain(ADD, shards),
        plain(RETURN_RESULT, 0),
        plain(RETURN_VALUE, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::shard_of;

    const HELLO: u8 = 0x11;

    /// Runs the program as the kernel does.
    fn run(program: &[Instruction], payload: &[u8]) -> u32 {
        let (mut result, mut aside) = (0u32, 0u32);
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
                JUMP_IF if result == step.operand => at += usize::from(step.if_true),
                JUMP_AT_LEAST | JUMP_IF => at += usize::from(step.if_false),
                PUT_ASIDE => aside = result,
                TAKE_BACK => result = aside,
                ADD => result += step.operand,
                MODULO => result %= step.operand,
                RETURN_RESULT => return result,
                RETURN_VALUE => return step.operand,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_and_the_rule_agree_and_hellos_have_sockets_of_their_own() {
        for shards in [1, 2, 3, 7, 64, 256] {
            for slot in 0..=255u8 {
                for (kind, first) in [(9, 0), (HELLO, shards)] {
                    let message = [kind, slot, 1];
                    let expected = first + shard_of(&message, shards).unwrap();
                    assert_eq!(run(&program(shards, HELLO), &message) as usize, expected);
                }
            }
        }
    }

    #[test]
    fn short_messages_have_no_owner() {
        for short in [&[][..], &[5], &[HELLO]] {
            assert_eq!(shard_of(short, 3), None);
            assert_eq!(run(&program(3, HELLO), short), 0);
        }
    }
}
